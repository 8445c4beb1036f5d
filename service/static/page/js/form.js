/** The form: image prompts, text, ControlNet maps, the init image and all other settings. */

import { useEffect, useRef } from "../vendor/hooks.js";
import { Button, html } from "./elements.js";
import { Field } from "./inputs.js";
import { ControlMaps, ImagePrompts, InitImage, NegativeImages } from "./pictures.js";
import { adaptersInUse } from "./request.js";

function Group({ id, title, children }) {
  return html`<section class="group" aria-labelledby=${id}><h2 id=${id}>${title}</h2>${children}</section>`;
}

/** Settings that few people need, unfolded as soon as something in them is set or wrong. */
function Fold({ title, set, wrong = null, children }) {
  const details = useRef();
  useEffect(() => {
    if (set > 0 || wrong) details.current.open = true;
  }, [set > 0, wrong]);
  return html`<details class="fold" ref=${details}><summary>${title}${set > 0 && html` <span class="badge">${set} set</span>`}</summary>
    <div class="fold-body">${children}</div></details>`;
}

/** A number for each of several names; what is not set is absent from `values`. */
function Numbers({ id, legend, names, values, field, help, error, onChange }) {
  const set = (name, value) => {
    const next = { ...values };
    if (value === undefined) delete next[name];
    else next[name] = value;
    onChange(next);
  };
  return html`<div class="field" id=${`f-${id}`} tabindex="-1"><span class="legend">${legend}</span>
    ${names.map(
      (
        name,
      ) => html`<${Field} key=${name} prefix=${id} value=${values[name]} onChange=${(value) => set(name, value)}
      field=${{ ...field, name, label: name, help: "" }} />`,
    )}
    ${help && html`<p class="help">${help}</p>`}
    ${error && html`<p class="field-error">${error}</p>`}</div>`;
}

function Loras({ state, schema, error, change }) {
  const names = schema.served(state.model, "loras");
  if (!schema.has("lora") || !names.length) return null;
  const field = { kind: "number", minimum: 0, maximum: 2, step: 0.05, fallback: "off" };
  return html`<${Numbers} id="lora" legend="LoRAs" names=${names} values=${state.loras} field=${field}
    help=${schema.fields.lora.help} error=${error} onChange=${(loras) => change({ loras })} />`;
}

/** How strongly image prompts act: one number, or one for each adapter in use. */
function Strength({ state, schema, error, change, onChange }) {
  const field = schema.field("ip_scale", state);
  const names = adaptersInUse(state, schema);
  const given = state.values.ip_scale;
  if (names.length < 2)
    return html`<${Field} field=${field} value=${given} error=${error} onChange=${onChange} />`;
  return html`<${Numbers} id="ip_scale" legend="Strength of each adapter" names=${names} values=${state.scales}
    field=${{ ...field, fallback: given ?? field.fallback }} error=${error} onChange=${(scales) => change({ scales })} />`;
}

export function Form({
  state,
  schema,
  errors,
  notes,
  change,
  adders,
  offered,
  example,
  sending,
  onSubmit,
  onClear,
  onPaint,
}) {
  const set = (name) => (value) =>
    change(({ values }) => {
      const next = { ...values };
      if (value === undefined) delete next[name];
      else next[name] = value;
      return { values: next };
    });
  const fields = (names) =>
    names.map(
      (
        name,
      ) => html`<${Field} key=${name} field=${schema.field(name, state)} value=${state.values[name]}
    error=${errors[name]} onChange=${set(name)} />`,
    );
  const submit = (event) => {
    event.preventDefault();
    onSubmit();
  };
  const keys = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  };
  const manyModels = schema.models.models.length > 1;
  const adapters = schema.field("adapter", state);
  const advanced = schema.advancedFields();
  const setCount = (names) => names.filter((name) => name in state.values).length;
  const areWrong = ["lora", ...advanced].some((name) => errors[name]);
  const parts = { state, schema, errors, notes, change };
  const prompt = { ...schema.field("prompt", state), help: "" };
  const negative = { ...schema.field("negative_prompt", state), help: "" };
  return html`<form class="panel" aria-label="Request" noValidate onSubmit=${submit} onKeyDown=${keys}>
    <div class="panel-body">
      ${
        manyModels &&
        html`<${Field} field=${{ ...schema.field("model", state), help: "" }} value=${state.model || undefined} error=${errors.model}
        onChange=${(model) => change({ model: model ?? "" })} />`
      }
      <${Group} id="images-title" title="Image prompt">
        <${ImagePrompts} ...${parts} examples=${offered.images} onFiles=${adders.images} onExample=${example(adders.images)} onPaint=${onPaint} />
        ${schema.has("ip_scale") && html`<${Strength} ...${parts} error=${errors.ip_scale} onChange=${set("ip_scale")} />`}
        ${fields(schema.imageFields())}
        ${adapters?.choices.length > 1 && html`<${Field} field=${{ ...adapters, help: "" }} value=${state.values.adapter} error=${errors.adapter} onChange=${set("adapter")} />`}
      <//>
      <${Group} id="text-title" title="Words">
        <${Field} field=${prompt} value=${state.values.prompt} error=${errors.prompt} onChange=${set("prompt")} placeholder="What should be different? Optional" />
        <${Field} field=${negative} value=${state.values.negative_prompt} error=${errors.negative_prompt} onChange=${set("negative_prompt")} rows=${1} placeholder="What should not be in it? Optional" />
      <//>
      ${
        schema.has("control_image") &&
        schema.field("control_type", state).choices.length > 0 &&
        html`<${Group} id="control-title" title="Structure">
        <${ControlMaps} ...${parts} examples=${offered.maps} onFiles=${adders.controls} onExample=${example(adders.controls)} /><//>`
      }
      ${schema.has("init_image") && html`<${Group} id="init-title" title="Start from a picture"><${InitImage} ...${parts} onFiles=${adders.init} onPaint=${onPaint} /><//>`}
      <${Group} id="output-title" title="Output"><div class="grid">${fields(schema.mainFields())}</div><//>
      ${
        schema.has("negative_image") &&
        html`<${Fold} title="Pictures to avoid" set=${state.negatives.length}>
        <${NegativeImages} ...${parts} onFiles=${adders.negatives} /><//>`
      }
      <${Fold} title="More settings" set=${setCount(advanced) + Object.keys(state.loras).length} wrong=${areWrong ? errors : null}>
        <${Loras} state=${state} schema=${schema} error=${errors.lora} change=${change} />
        ${fields(advanced)}
      <//>
    </div>
    <div class="panel-foot">
      <button class="button primary generate" type="submit" aria-disabled=${sending ? "true" : undefined} aria-keyshortcuts="Control+Enter">${sending ? "Sending…" : "Generate"}</button>
      <${Button} kind="plain" label="Clear" onClick=${onClear} />
    </div>
  </form>`;
}
