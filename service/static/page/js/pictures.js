/** The pictures of a request: image prompts, ControlNet maps, the init image and negatives. */

import { useRef, useState } from "../vendor/hooks.js";
import { Button, FieldError, html, Icon } from "./elements.js";
import { useSuccessor } from "./focus.js";
import { Field } from "./inputs.js";

const touches = matchMedia("(pointer: coarse)").matches;

/** Where files are dropped or chosen; `onFiles` gets them. */
export function DropZone({ id, label, hint, accept, multiple = true, large, invalid, onFiles }) {
  const [over, setOver] = useState(0);
  const input = useRef();
  const camera = useRef();
  const element = useSuccessor(".card button");
  const take = (event) => {
    onFiles([...event.target.files]);
    event.target.value = "";
  };
  const drop = (event) => {
    event.preventDefault();
    event.stopPropagation();
    setOver(0);
    onFiles([...event.dataTransfer.files]);
  };
  return html`<div class=${`drop ${large ? "large" : ""} ${over > 0 ? "over" : ""} ${invalid ? "invalid" : ""}`} ref=${element}
      onDragEnter=${() => setOver((depth) => depth + 1)} onDragLeave=${() => setOver((depth) => depth - 1)}
      onDragOver=${(event) => event.preventDefault()} onDrop=${drop}>
    <button type="button" id=${id} class="drop-button" aria-describedby=${invalid ? `${id}-error` : undefined}
        onClick=${() => input.current.click()}>
      <${Icon} name=${large ? "image" : "add"} /><span><strong>${label}</strong>${hint && html`<small>${hint}</small>`}</span>
    </button>
    ${
      touches &&
      html`<${Button} icon="camera" label="Take a photo" kind="small" onClick=${() => camera.current.click()} />
      <input ref=${camera} type="file" accept="image/*" capture="environment" hidden onChange=${take} />`
    }
    <input ref=${input} type="file" accept=${accept} multiple=${multiple} hidden onChange=${take} />
  </div>`;
}

/** A picture's preview; a stand-in where this browser lacks the file or cannot decode it. */
export function Thumb({ picture, alt, onBroken }) {
  const [shows, setShows] = useState(true);
  const fail = () => {
    setShows(false);
    onBroken?.();
  };
  return picture.url && shows
    ? html`<img class="thumb" src=${picture.url} alt=${alt} onError=${fail} />`
    : html`<div class="thumb missing" role="img" aria-label=${`${alt}, no preview`}><${Icon} name="image" /></div>`;
}

const replaced = (list, index, patch) =>
  list.map((one, at) => (at === index ? { ...one, ...patch } : one));
const removed = (list, index) => list.filter((_, at) => at !== index);

/** What is said of files that were just added here. */
const Note = ({ text }) => text && html`<p class="help" role="alert">${text}</p>`;

/** The button that removes the picture after this one or, of the last one, that before it. */
const neighbour = (card) =>
  (card.nextElementSibling ?? card.previousElementSibling)?.querySelector(".icon-only");

function Card({ picture, title, onBroken, onRemove, children }) {
  const element = useSuccessor(".drop-button", neighbour);
  return html`<li class="card" ref=${element}>
    <${Thumb} picture=${picture} alt=${`${title}: ${picture.name}`} onBroken=${onBroken} />
    <div class="card-body">
      <div class="card-head"><span class="file-name" title=${picture.name}>${picture.name}</span>
        <${Button} icon="cancel" kind="icon-only" quiet=${`Remove ${picture.name}`} onClick=${onRemove} /></div>
      ${!picture.url && html`<p class="help">Not in this browser. Remove it and add the file again.</p>`}
      ${children}
    </div>
  </li>`;
}

/** Focus the button before one that goes away as it is pressed. */
const before = (event) => event.currentTarget.previousElementSibling.focus();

const weightField = {
  name: "weight",
  label: "Weight",
  kind: "number",
  minimum: 0,
  maximum: 2,
  step: 0.05,
  fallback: 1,
};

function Examples({ names, onPick }) {
  const element = useSuccessor(".drop-button");
  if (!names.length) return null;
  return html`<div class="examples" ref=${element}><span>Or try</span>
    ${names.map(
      ([
        name,
        title,
        url,
      ]) => html`<button type="button" key=${name} class="example" title=${title} onClick=${() => onPick(name)}>
      <img src=${url} alt=${`Use the example ${title}`} /></button>`,
    )}
  </div>`;
}

/** Image prompts, each with its weight and, where the server knows them, adapter and mask. */
export function ImagePrompts({
  state,
  schema,
  errors,
  notes,
  examples,
  change,
  onFiles,
  onExample,
  onPaint,
}) {
  const { images } = state;
  const field = schema.field("image", state);
  const adapter = schema.field("image_adapter", state);
  const error = errors.image ?? errors.image_weights ?? errors.image_adapter ?? errors.image_mask;
  const set = (index, patch) => change({ images: replaced(images, index, patch) });
  const room = images.length < field.most;
  return html`
    ${
      images.length > 0 &&
      html`<ul class="cards">${images.map(
        (image, index) => html`
      <${Card} key=${image.id} picture=${image} title="Image prompt" onRemove=${() => change({ images: removed(images, index) })}>
        ${
          images.length > 1 &&
          html`<${Field} field=${weightField} prefix=${`image-${index}`} value=${image.weight === 1 ? undefined : image.weight}
          onChange=${(weight) => set(index, { weight: weight ?? 1 })} />`
        }
        ${
          adapter &&
          images.length > 1 &&
          adapter.choices.length > 1 &&
          html`<${Field} field=${{ ...adapter, label: "Adapter", help: "" }} prefix=${`image-${index}`}
          value=${image.adapter || undefined} onChange=${(value) => set(index, { adapter: value ?? "" })} />`
        }
        ${
          schema.has("image_mask") &&
          html`<div class="row"><${Button} icon="brush" kind="small" label=${image.mask ? "Edit where it acts" : "Limit where it acts"}
            onClick=${() => onPaint({ kind: "image", index })} />
          ${image.mask && html`<${Button} kind="small plain" label="Everywhere" onClick=${(event) => (before(event), set(index, { mask: null }))} />`}</div>`
        }
      <//>`,
      )}</ul>`
    }
    ${
      room &&
      html`<${DropZone} id="f-image" accept=${schema.accept} large=${!images.length} invalid=${Boolean(error)} onFiles=${onFiles}
      label=${images.length ? "Add another" : touches ? "Choose a picture" : "Drop a picture here"}
      hint=${images.length ? "" : touches ? "that the result should follow" : "or click to choose one, or paste"} />`
    }
    <${Note} text=${notes.image} />
    <${FieldError} id="f-image-error" message=${error} />
    ${!images.length && html`<${Examples} names=${examples} onPick=${onExample} />`}`;
}

const CONTROL_PARTS = [
  "control_type",
  "control_preprocess",
  "control_scale",
  "control_start",
  "control_end",
];
const CONTROL_LABELS = {
  control_type: "Type",
  control_preprocess: "Make the map by",
  control_scale: "Strength",
  control_start: "Acts from",
  control_end: "Acts until",
};

/** ControlNet maps, each with its type, strength, part of the denoising and preprocessing. */
export function ControlMaps({
  state,
  schema,
  errors,
  notes,
  examples,
  change,
  onFiles,
  onExample,
}) {
  const { controls } = state;
  const most = schema.fields.control_image.most;
  const error = errors.control_image;
  const set = (index, patch) => change({ controls: replaced(controls, index, patch) });
  return html`
    ${
      controls.length > 0 &&
      html`<ul class="cards">${controls.map(
        (control, index) => html`
      <${Card} key=${control.id} picture=${control} title="ControlNet map" onRemove=${() => change({ controls: removed(controls, index) })}>
        <div class="parts">${CONTROL_PARTS.filter((name) => schema.has(name)).map((name) => {
          const field = { ...schema.field(name, state), label: CONTROL_LABELS[name], help: "" };
          const part = name.slice("control_".length);
          const value = control[part];
          const isDefault = value === "" || value === field.fallback;
          if (field.kind === "choice" && field.choices.length < 2) return null;
          return html`<${Field} key=${name} field=${field} prefix=${`control-${index}`} error=${index === 0 ? errors[name] : undefined}
            value=${isDefault ? undefined : value} onChange=${(next) => set(index, { [part]: next ?? field.fallback })} />`;
        })}</div>
      <//>`,
      )}</ul>`
    }
    ${
      controls.length < most &&
      html`<${DropZone} id="f-control_image" accept=${schema.accept} multiple=${most > 1} invalid=${Boolean(error)} onFiles=${onFiles}
      label=${controls.length ? "Add another map" : "Add a control map"} hint=${controls.length ? "" : "an outline, a pose, a depth map"} />`
    }
    <${Note} text=${notes.control_image} />
    <${FieldError} id="f-control_image-error" message=${error} />
    ${!controls.length && html`<${Examples} names=${examples} onPick=${onExample} />`}`;
}

/** The picture to start from, how much of it changes, and the mask painted on it. */
export function InitImage({ state, schema, errors, notes, change, onFiles, onPaint }) {
  const { init } = state;
  const error = errors.init_image ?? errors.mask_image;
  const set = (patch) => change({ init: { ...init, ...patch } });
  const part = (name, key) =>
    schema.has(name) &&
    html`<${Field} field=${schema.field(name, state)} error=${errors[name]}
    value=${init[key]} onChange=${(value) => set({ [key]: value })} />`;
  return html`
    ${
      init &&
      html`<ul class="cards"><${Card} picture=${init} key=${init.id} title="Picture to start from" onBroken=${() => set({ shows: false })} onRemove=${() => change({ init: null })}>
        ${
          schema.has("mask_image") &&
          html`<div class="row"><${Button} icon="brush" kind="small" label=${init.mask ? "Edit the mask" : "Paint a mask"}
            onClick=${() => onPaint({ kind: "init" })} disabled=${!init.url || init.shows === false} />
          ${init.mask && html`<${Button} kind="small plain" label="Remove the mask" onClick=${(event) => (before(event), set({ mask: null }))} />`}</div>`
        }
        ${init.shows === false && html`<p class="help">This browser cannot show this file, so no mask can be painted on it. Convert it to PNG or JPEG first.</p>`}
      <//></ul>
      ${part("strength", "strength")}
      ${init.mask && part("mask_blur", "blur")}`
    }
    ${!init && html`<${DropZone} id="f-init_image" accept=${schema.accept} multiple=${false} invalid=${Boolean(error)} onFiles=${onFiles} label="Choose a picture to start from" hint="to change it, or a part of it" />`}
    <${Note} text=${notes.init_image} />
    <${FieldError} id="f-init_image-error" message=${error} />`;
}

/** Pictures that the result should not look like. */
export function NegativeImages({ state, schema, errors, notes, change, onFiles }) {
  const { negatives } = state;
  return html`
    ${
      negatives.length > 0 &&
      html`<ul class="cards">${negatives.map(
        (one, index) => html`
      <${Card} key=${one.id} picture=${one} title="Negative image" onRemove=${() => change({ negatives: removed(negatives, index) })} />`,
      )}</ul>`
    }
    ${
      negatives.length < schema.fields.negative_image.most &&
      html`<${DropZone} id="f-negative_image" accept=${schema.accept} invalid=${Boolean(errors.negative_image)} onFiles=${onFiles}
      label="Add a picture to avoid" />`
    }
    <${Note} text=${notes.negative_image} />
    <${FieldError} id="f-negative_image-error" message=${errors.negative_image} />`;
}
