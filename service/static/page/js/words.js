/** What the page calls the fields, their choices and their errors: it is not read beside the API. */

/** Names, where those of the contract in words would not do. */
export const LABELS = {
  clip_skip: "Text layers left out",
  control_image: "Control map",
  control_preprocess: "How the control map is made",
  control_scale: "Strength of the control map",
  control_type: "Type of the control map",
  crop: "Fit of image prompts",
  guidance_end: "Guidance ends at",
  guidance_scale: "Guidance",
  guidance_start: "Guidance starts at",
  image: "Image prompt",
  image_adapter: "Adapter",
  image_mask: "Where the image prompt acts",
  image_weights: "Weight",
  init_image: "Picture to start from",
  ip_end: "Image acts until",
  ip_scale: "Strength of the image",
  ip_start: "Image acts from",
  ip_target: "Take from the image",
  lora: "LoRAs",
  mask_blur: "Soft edge of the mask",
  mask_image: "Mask",
  negative_image: "Picture to avoid",
  negative_prompt: "Avoid",
  num_images: "Pictures",
  output_format: "File format",
  preview_every: "Steps between previews",
  prompt: "Text",
  sigmas: "Noise schedule",
  strength: "How much changes",
  webhook_url: "Webhook URL",
};

const SHARE = "0 is the first step, 1 the last.";

/** Help; a field that is not here shows the description of the contract. */
export const HELP = {
  clip_skip: "The last layers that read the text, for models that were made without them.",
  crop: "How a picture that is not square is made square before it is looked at.",
  deterministic: "The same settings give the same file again. It may wait longer.",
  guidance_end: SHARE,
  guidance_scale: "How strictly the result keeps to pictures and text. 1 or less switches it off.",
  guidance_start: SHARE,
  ip_end: SHARE,
  ip_scale: "How closely the result follows the picture: 1 by itself, 0.5 beside a text.",
  ip_start: SHARE,
  ip_target: "Style is colours and surfaces, layout is where things are.",
  lora: "Additions to the model, each as strong as it is set here.",
  mask_blur: "In pixels.",
  output_format: "Of the file that you download.",
  preview_every: "0 for no previews.",
  scheduler: "The way from noise to the picture.",
  sigmas: "How the noise goes down over the steps. Not every scheduler follows it.",
  steps: "More take longer and show finer detail.",
  strength: "0.2 changes little, 1 makes the picture anew.",
  webhook_url: "An address (https) that is told when the job ends.",
};

/** Choices that would not speak for themselves. */
export const CHOICES = {
  control_preprocess: { none: "It is a map already", canny: "Its edges", depth: "Its depth" },
  crop: { center: "Its middle", pad: "All of it, with a margin", resize: "All of it, squeezed" },
  ip_target: {
    all: "Everything",
    style: "Its style",
    layout: "Its layout",
    style_layout: "Style and layout",
  },
  output_format: { png: "PNG", jpeg: "JPEG", webp: "WebP" },
  sigmas: { default: "The scheduler's own" },
};

export const words = (name) => name.replaceAll("_", " ").replace(/^./, (one) => one.toUpperCase());

/** Which limit of a field a value breaks. */
function broken({ minimum, maximum, step, kind }, value) {
  if (value < minimum) return `must be at least ${minimum}`;
  if (value > maximum) return `must be at most ${maximum}`;
  if (kind !== "integer" || !(value % step)) return null;
  return step === 1 ? "must be a whole number" : `must be a multiple of ${step}`;
}

/**
 * An error of the service as one sentence in the page's words. `files` has the names of the files
 * that were sent, by field: an error of one of several names it as `field[number]`.
 */
export function readable({ field, message }, state, schema, files) {
  const [, name, number = 0] = /^(\w+?)(?:\[(\d+)\])?$/.exec(field) ?? [null, field];
  const told = (text) => ({ field: name, message: text });
  const file = files[name]?.[number];
  if (name === "image" && !file) return told("Add a picture that the result should follow");
  const known = schema.field(name, state);
  const value = { strength: state.init?.strength, mask_blur: state.init?.blur }[name];
  const limit = known && broken(known, Number(value ?? state.values[name] ?? NaN));
  const text = (limit ?? message)
    .replace(/^Input should be /, "must be ")
    .replace(/^Extra inputs are not permitted$/, "is not known to this service")
    .replace(/; ([^;]+) are served$/, "; choose one of $1")
    .replace(/\w+_\w+/g, (one) => (schema.has(one) ? `“${schema.label(one)}”` : one));
  const separator = /^[A-Z]/.test(text) ? ":" : "";
  return told(`${file ?? schema.label(name)}${separator} ${text}`);
}
