/**
 * The fields of the form as the server declares them: types, ranges, choices and defaults.
 *
 * What the server does not declare is not offered; a field without a place of its own is shown
 * among the advanced settings.
 */

import { HELP, LABELS, words } from "./words.js";

/** Shown beside the image prompts, in this order. */
const IMAGE_FIELDS = ["ip_target"];
/** Shown as the main settings, in this order. */
const MAIN_FIELDS = ["width", "height", "num_images", "seed"];
/** Shown in places of their own. */
const OWN_PLACE = new Set([
  ...IMAGE_FIELDS,
  "ip_scale",
  ...MAIN_FIELDS,
  "model",
  "adapter",
  "prompt",
  "negative_prompt",
  "image",
  "image_weights",
  "image_adapter",
  "image_mask",
  "negative_image",
  "control_image",
  "control_type",
  "control_scale",
  "control_start",
  "control_end",
  "control_preprocess",
  "init_image",
  "strength",
  "mask_image",
  "mask_blur",
  "lora",
]);

/** A step that a slider over this span can be set by. */
const stepOf = (span) => (span > 20 ? 1 : span > 2 ? 0.1 : 0.05);

/** One field: `kind` is file, boolean, choice, number, integer or text. */
function fieldOf(name, schema) {
  const listed = schema.type === "array";
  const inner = listed ? { ...schema.items, ...schema, type: schema.items?.type } : schema;
  const numbers = (inner.anyOf ?? []).find((one) => one.type === "number");
  const found = { ...inner, ...(numbers ?? {}) };
  let kind = found.type === "string" ? "text" : found.type;
  if (found.format === "binary" || schema.items?.format === "binary") kind = "file";
  if (found.enum ?? schema.items?.enum) kind = "choice";
  return {
    name,
    kind,
    label: LABELS[name] ?? words(name),
    help: HELP[name] ?? (schema.description ?? "").replaceAll("`", ""),
    listed,
    most: schema.maxItems ?? (listed ? 8 : 1),
    minimum: found.minimum ?? schema.items?.minimum,
    maximum: found.maximum ?? schema.items?.maximum,
    step: found.multipleOf ?? (kind === "integer" ? 1 : stepOf(found.maximum - found.minimum)),
    maxLength: found.maxLength,
    choices: found.enum ?? schema.items?.enum ?? [],
    fallback: schema.default,
  };
}

export class Schema {
  /** `form` is `form.json`, `models` the answer of GET /models. */
  constructor(form, models) {
    this.models = models;
    /** Media types of pictures; a phone converts what it has into one of them. */
    this.accept = form.accept;
    this.fields = Object.fromEntries(
      Object.entries(form.schema.properties).map(([name, schema]) => [name, fieldOf(name, schema)]),
    );
  }

  has(name) {
    return name in this.fields;
  }

  /** What the page calls a field. */
  label(name) {
    return this.fields[name]?.label ?? words(name);
  }

  model(name) {
    return (
      this.models.models.find((one) => one.name === (name || this.models.default)) ??
      this.models.models[0]
    );
  }

  /** Names that the model serves under these keys of GET /models. */
  served(modelName, ...keys) {
    const model = this.model(modelName);
    return keys.flatMap((key) => model[key] ?? []);
  }

  /** A field within the limits of a model; `state` gives the defaults that hang on others. */
  field(name, state) {
    const field = this.fields[name];
    if (!field) return null;
    const { limits = {}, defaults = {} } = this.model(state.model);
    const own = { ...field };
    own.fallback = defaults[name] ?? field.fallback;
    if (name === "width" || name === "height") {
      own.minimum = limits.min_size ?? own.minimum;
      own.maximum = limits.max_size ?? own.maximum;
    }
    if (name === "steps") own.maximum = limits.max_steps ?? own.maximum;
    if (name === "ip_scale") own.fallback ??= state.values.prompt ? 0.5 : 1;
    if (name === "model")
      Object.assign(own, {
        kind: "choice",
        choices: this.models.models.map((one) => one.name),
        fallback: this.models.default,
      });
    if (name === "adapter" || name === "image_adapter") {
      Object.assign(own, {
        kind: "choice",
        choices: this.served(state.model, "adapters"),
        fallback: defaults.adapter,
      });
    }
    if (name === "control_type") {
      const choices = this.served(state.model, "controlnets", "t2i_adapters");
      Object.assign(own, { kind: "choice", choices, fallback: choices[0] });
    }
    if (name === "control_preprocess") {
      const choices = this.served(state.model, "preprocessors");
      Object.assign(own, { kind: "choice", choices, fallback: "none" });
    }
    const fixed = {
      control_scale: 1,
      control_start: 0,
      control_end: 1,
      strength: state.init?.mask ? 1 : 0.6,
      mask_blur: 0,
      ip_start: 0,
      ip_end: 1,
      guidance_start: 0,
      guidance_end: 1,
      output_format: "png",
    };
    own.fallback ??= fixed[name];
    return own;
  }

  imageFields = () => IMAGE_FIELDS.filter((name) => this.has(name));
  mainFields = () => MAIN_FIELDS.filter((name) => this.has(name));
  advancedFields = () =>
    Object.keys(this.fields).filter(
      (name) => !OWN_PLACE.has(name) && this.fields[name].kind !== "file",
    );
}
