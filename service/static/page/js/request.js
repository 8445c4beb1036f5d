/**
 * What the form holds, and how it becomes a request and comes back from a job's `input`.
 *
 * A picture is `{id, sha256, file, name, url}`; `file` and `url` are null where only its hash is
 * known. Values that are not set are left to the server.
 */

import { keep, kept, sha256 } from "./store.js";

export const emptyState = () => ({
  model: "",
  values: {},
  images: [],
  /** Strengths of adapters, where several are in use. */
  scales: {},
  negatives: [],
  controls: [],
  init: null,
  loras: {},
});

let made = 0;

/** A picture of a file that somebody gave; it is kept in this browser. */
export async function pictureOf(file, name = file.name || "image.png") {
  const digest = await sha256(file);
  await keep(digest, file, name);
  return { id: ++made, sha256: digest, file, name, url: URL.createObjectURL(file) };
}

/** The picture with this hash; without its file where this browser does not have it. */
async function pictureBy(digest, name) {
  const found = await kept(digest);
  return {
    id: ++made,
    sha256: digest,
    file: found?.file ?? null,
    name: found?.name ?? name,
    url: found ? URL.createObjectURL(found.file) : null,
  };
}

export const asImage = (picture) => ({ ...picture, weight: 1, adapter: "", mask: null });
export const asControl = (picture) => ({
  ...picture,
  type: "",
  scale: 1,
  start: 0,
  end: 1,
  preprocess: "none",
});
export const asInit = (picture) => ({
  ...picture,
  strength: undefined,
  mask: null,
  blur: undefined,
});

let white;
/** A mask that excludes nothing, for image prompts without one beside others that have one. */
const whiteMask = () => (white ??= makeWhiteMask());

async function makeWhiteMask() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, 64, 64);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return pictureOf(new File([blob], "white-mask.png", { type: "image/png" }));
}

const adapterOf = (image, state, schema) =>
  image.adapter || state.values.adapter || schema.model(state.model).defaults.adapter;

/** The adapters that image prompts go through, in the order in which a request gives strengths. */
export const adaptersInUse = (state, schema) => [
  ...new Set(state.images.map((image) => adapterOf(image, state, schema))),
];

const joined = (list, read) => list.map(read).join(",");

/** The fields of the request as `[name, text or picture]`, in the order of the contract. */
export async function entries(state, schema) {
  const found = [];
  const put = (name, value) => {
    if (schema.has(name) && value !== undefined && value !== null && value !== "")
      found.push([name, value]);
  };
  const { images, controls, init } = state;
  for (const image of images) put("image", image);
  if (images.some((image) => image.weight !== 1))
    put(
      "image_weights",
      joined(images, (image) => image.weight),
    );
  if (images.some((image) => image.adapter))
    put(
      "image_adapter",
      joined(images, (image) => adapterOf(image, state, schema)),
    );
  if (images.some((image) => image.mask)) {
    for (const image of images) put("image_mask", image.mask ?? (await whiteMask()));
  }
  for (const negative of state.negatives) put("negative_image", negative);
  if (controls.length) {
    const [first] = schema.field("control_type", state)?.choices ?? [];
    const given = (name, read, fallback) => {
      if (controls.some((control) => read(control) !== fallback)) put(name, joined(controls, read));
    };
    for (const control of controls) put("control_image", control);
    given("control_type", (control) => control.type || first, first);
    given("control_scale", (control) => control.scale, 1);
    given("control_start", (control) => control.start, 0);
    given("control_end", (control) => control.end, 1);
    given("control_preprocess", (control) => control.preprocess, "none");
  }
  if (init) {
    put("init_image", init);
    put("strength", init.strength);
    if (init.mask) {
      put("mask_image", init.mask);
      put("mask_blur", init.blur);
    }
  }
  put("model", state.model);
  const values = { ...state.values };
  const used = adaptersInUse(state, schema);
  if (used.length > 1 && used.some((name) => name in state.scales)) {
    const scale = schema.field("ip_scale", state);
    values.ip_scale = joined(used, (name) => state.scales[name] ?? values.ip_scale ?? scale.fallback);
  }
  for (const [name, value] of Object.entries(values)) {
    if (value !== false) put(name, String(value));
  }
  put(
    "lora",
    Object.entries(state.loras)
      .map(([name, scale]) => `${name}:${scale}`)
      .join(","),
  );
  return found.map(([name, value]) => [name, typeof value === "object" ? value : String(value)]);
}

/** The names of a request's files, by field. */
export const fileNames = ({ images, negatives, controls, init }) => ({
  image: images.map(({ name }) => name),
  image_mask: images.map(({ mask }) => mask?.name),
  negative_image: negatives.map(({ name }) => name),
  control_image: controls.map(({ name }) => name),
  init_image: init ? [init.name] : [],
  mask_image: init?.mask ? [init.mask.name] : [],
});

/** The first picture whose file is not here, as the service would name it; `null` if all are. */
export function missing(fields) {
  const lost = fields.find(([, value]) => typeof value !== "string" && value.file === null);
  if (!lost) return null;
  const [name] = lost;
  return `${name}[${fields.filter((one) => one[0] === name).indexOf(lost)}]`;
}

export function formData(fields) {
  const form = new FormData();
  for (const [name, value] of fields) {
    if (typeof value === "string") form.append(name, value);
    else form.append(name, value.file, value.name);
  }
  return form;
}

/** The form as `stateOf` reads it again: pictures by their hashes. */
export async function remembered(state, schema) {
  const found = {};
  for (const [name, value] of await entries(state, schema)) {
    if (typeof value === "string") found[name] = value;
    else (found[name] ??= []).push({ sha256: value.sha256 });
  }
  return found;
}

const listOf = (value) => {
  if (value === undefined || value === null || value === "") return [];
  if (Array.isArray(value)) return value;
  return typeof value === "string" ? value.split(",") : [value];
};

/** The value of a list at an index; one value stands for all. */
const at = (value, index) => {
  const list = listOf(value);
  return list[list.length === 1 ? 0 : index];
};

/** The form behind a job's `input`, a picture's settings or what `remembered` told. */
export async function stateOf(input, schema) {
  const state = emptyState();
  const pictures = (name, stem = name) =>
    Promise.all(
      listOf(input[name]).map((one, index) => pictureBy(one.sha256, `${stem}-${index + 1}.png`)),
    );
  const number = (value, fallback) =>
    value === undefined || value === null ? fallback : Number(value);
  const [images, masks] = [await pictures("image"), await pictures("image_mask", "image-mask")];
  const adapters = listOf(input.image_adapter);
  const whole = masks.length ? await whiteMask() : null;
  state.images = images.map((picture, index) => ({
    ...asImage(picture),
    weight: number(at(input.image_weights, index), 1),
    adapter: new Set(adapters).size > 1 ? at(adapters, index) : "",
    mask: masks[index] && masks[index].sha256 !== whole.sha256 ? masks[index] : null,
  }));
  state.negatives = await pictures("negative_image", "negative");
  state.controls = (await pictures("control_image", "control")).map((picture, index) => ({
    ...asControl(picture),
    type: at(input.control_type, index) ?? "",
    scale: number(at(input.control_scale, index), 1),
    start: number(at(input.control_start, index), 0),
    end: number(at(input.control_end, index), 1),
    preprocess: at(input.control_preprocess, index) ?? "none",
  }));
  const [init] = await pictures("init_image", "init");
  const [mask] = await pictures("mask_image", "init-mask");
  if (init)
    state.init = {
      ...asInit(init),
      mask: mask ?? null,
      strength: input.strength ?? undefined,
      blur: input.mask_blur || undefined,
    };
  for (const one of listOf(input.lora)) {
    const [name, scale] = typeof one === "string" ? one.split(":") : [one.name, one.scale];
    state.loras[name] = Number(scale ?? 1);
  }
  const scales = listOf(input.ip_scale);
  if (scales.length > 1) {
    for (const [index, name] of [...new Set(adapters)].entries())
      state.scales[name] = Number(scales[index]);
  }
  state.model = input.model && input.model !== schema.models.default ? input.model : "";
  if (input.prompt) state.values.prompt = input.prompt;
  for (const [name, value] of Object.entries(input)) {
    if (name !== "ip_scale" || scales.length < 2) setValue(state, schema, name, value);
  }
  return state;
}

/** Of its own: what a place of its own does not show, and what is not the default anyway. */
const PLACED =
  /^(image|image_.*|negative_image|control_.*|init_image|strength|mask_.*|model|lora)$/;

function setValue(state, schema, name, value) {
  const field = schema.has(name) && !PLACED.test(name) ? schema.field(name, state) : null;
  if (!field || value === null || value === undefined) return;
  const text = Array.isArray(value) ? value.join(",") : value;
  if (String(text) === String(field.fallback ?? "") && name !== "seed") return;
  state.values[name] = field.kind === "boolean" ? text === true || text === "true" : text;
}
