/** What becomes of a request: nothing yet, in progress, its pictures, or why there are none. */

import { useEffect, useState } from "../vendor/hooks.js";
import { apiKey } from "./api.js";
import { Button, copyText, count, duration, html, Icon } from "./elements.js";
import { useSuccessor } from "./focus.js";
import { isFinal, usePictures } from "./job.js";
import { Thumb } from "./pictures.js";
import { entries, stateOf } from "./request.js";
import { snippets, withOwnNames } from "./snippets.js";

/** What a screen reader is told: states, and progress by the quarter. */
export function spoken({ view, interrupted, problem }) {
  if (problem) return problem.title;
  if (!view) return "";
  if (interrupted) return "Connection lost; reconnecting";
  const { step, total } = view.progress;
  const quarter = Math.floor((4 * step) / total);
  return {
    queued: view.queue_position ? `Queued, ${count(view.queue_position, "job")} ahead` : "Queued",
    processing: quarter ? `In progress, ${25 * quarter} percent` : "In progress",
    succeeded: `Done: ${count(view.images.length, "picture")}`,
    failed: "The job failed",
    canceled: "Canceled",
    expired: "Expired",
  }[view.status];
}

export function Empty({ onExample, example }) {
  return html`<div class="empty">
    <div class="empty-art"><${Icon} name="image" /><${Icon} name="sparkle" /></div>
    <h2>Make a picture from a picture</h2>
    <p>Give it a picture to follow, say in words what should be different, and generate.</p>
    ${example && html`<${Button} label="Start with an example" onClick=${onExample} />`}
  </div>`;
}

/** Problems that stand in no field, with the fields that are wrong as links to them. */
export function ProblemBox({ problem, fields, onField, onKey, onRetry }) {
  const listed = problem.errors.filter(({ field }) => !fields || fields(field));
  return html`<div class="notice error" role="alert">
    <h2>${problem.title}</h2>
    ${
      listed.length
        ? html`<ul>${listed.map(
            ({ field, message }) => html`<li key=${message}>
          <button type="button" class="link" onClick=${() => onField(field)}>${message}</button></li>`,
          )}</ul>`
        : html`<p>${problem.detail}</p>`
    }
    ${problem.retryAfter && html`<p>Try again in ${duration(problem.retryAfter)}.</p>`}
    ${problem.instance && problem.status >= 500 && html`<p class="help">Request ${problem.instance}</p>`}
    <div class="row">
      ${(problem.status === 401 || problem.status === 403) && html`<${Button} icon="key" kind="primary" label="Enter an API key" onClick=${onKey} />`}
      ${onRetry && html`<${Button} icon="again" label="Try again" onClick=${onRetry} />`}
    </div>
  </div>`;
}

/** The request's own pictures, from this browser; nothing for those that another one sent. */
function usePrompts(input, schema) {
  const [state, setState] = useState(null);
  const told = JSON.stringify(input);
  useEffect(() => {
    let ended = false;
    stateOf(input, schema).then((found) => !ended && setState(found));
    return () => (ended = true);
  }, [told]);
  return state;
}

/** A mask is shown where this browser has it. */
const maskOf = ({ mask }, title) => (mask?.url ? [[title, mask]] : []);

function Prompts({ input, state, maps }) {
  if (!state) return null;
  const pictures = [
    ...state.images.flatMap((picture) => [
      ["Image prompt", picture],
      ...maskOf(picture, "Where it acts"),
    ]),
    ...state.controls.map((picture) => ["Control map", picture]),
    ...maps
      .filter((map) => map?.url)
      .map((map, index) => ["Map used", { ...map, id: `map-${index}` }]),
    ...(state.init ? [["Started from", state.init], ...maskOf(state.init, "Mask")] : []),
    ...state.negatives.map((picture) => ["Picture to avoid", picture]),
  ];
  return html`<div class="prompts">
    ${pictures.map(([kind, picture]) => html`<figure key=${picture.id}><${Thumb} picture=${picture} alt=${kind} /><figcaption>${kind}</figcaption></figure>`)}
    ${input.prompt && html`<blockquote>${input.prompt}</blockquote>`}
  </div>`;
}

/** Pictures are shown at up to four times their size. */
const shape = ({ width, height }) => ({
  aspectRatio: `${width} / ${height}`,
  width: `min(100%, ${4 * width}px, ${(66 * width) / height}vh)`,
});

function Progress({ view, preview, interrupted, onCancel, canceling }) {
  const element = useSuccessor(".generate");
  const { step, total } = view.progress;
  const waits = view.status === "queued";
  const ahead = view.queue_position
    ? `${count(view.queue_position, "job")} ahead`
    : "next in the queue";
  const text = interrupted
    ? "Connection lost; reconnecting…"
    : waits
      ? `Queued, ${ahead}`
      : `Step ${step} of ${total}`;
  const eta = view.eta_seconds === null ? "" : `about ${duration(view.eta_seconds)} left`;
  return html`<div class="canvas" style=${shape(view.input)}>
      ${preview ? html`<img src=${preview} alt="Preview" />` : html`<div class=${`shimmer ${waits ? "waits" : ""}`}></div>`}
    </div>
    <div class="progress" ref=${element}>
      <progress max=${total} value=${waits ? undefined : step} aria-label="Progress"></progress>
      <div class="row spread"><span>${text}</span><span class="muted">${eta}</span></div>
      <${Button} icon="cancel" label=${canceling ? "Canceling…" : "Cancel"} aria-disabled=${canceling ? "true" : undefined} onClick=${onCancel} />
    </div>`;
}

const extension = (image) => image.content_type.split("/")[1];

function Result({ view, images, schema, onAgain, onInit, onPrompt }) {
  const known = images.map((image) => image?.problem).find(Boolean);
  return html`<div class=${`results of-${view.images.length}`}>
    ${view.images.map((shown, number) => {
      const image = images[number];
      const name = `imageprompt-${view.id.slice(0, 8)}-${number}.${extension(shown)}`;
      return html`<figure class="result" key=${number}>
        <div class="canvas" style=${shape(shown)}>
          ${image?.url ? html`<img src=${image.url} alt=${view.input.prompt || `Picture ${number + 1}`} width=${shown.width} height=${shown.height} />` : html`<div class="shimmer"></div>`}
        </div>
        <figcaption>
          <span class="muted">Seed ${shown.seed} · ${shown.width} × ${shown.height}</span>
          <div class="row">
            <a class=${`button small primary ${image?.url ? "" : "disabled"}`} href=${image?.url} download=${name}><${Icon} name="download" />Download</a>
            <${Button} icon="again" kind="small" label="Again" quiet="Again with this seed" onClick=${() => onAgain(shown.seed)} />
            ${image?.blob && schema.has("init_image") && html`<${Button} kind="small" label="Start from this" onClick=${() => onInit(image.blob, name)} />`}
            ${image?.blob && html`<${Button} kind="small" label="Use as image prompt" onClick=${() => onPrompt(image.blob, name)} />`}
          </div>
        </figcaption>
      </figure>`;
    })}
    ${known && html`<div class="notice error" role="alert"><p>${known.detail}</p></div>`}
  </div>`;
}

/** The files that the code reads: masks were painted here, others may have been pasted. */
function CodeFiles({ fields }) {
  const files = new Map(fields.filter(([, value]) => value.name).map(([, one]) => [one.name, one]));
  const renamed = [...files.values()].filter(({ name, called }) => name !== called);
  return html`<p class="help">The code reads these files from its folder. Save those that are not on your disk:
      ${[...files.values()].map(({ name, url }) => (url ? html` <a key=${name} href=${url} download=${name}>${name}</a>` : html` <span key=${name}>${name} (not in this browser)</span>`))}</p>
    ${renamed.map(({ name, called }) => html`<p class="help" key=${name}>Another file is called ${called} too; the code calls this one ${name}.</p>`)}`;
}

function Code({ state, schema }) {
  const [fields, setFields] = useState(null);
  const [language, setLanguage] = useState("curl");
  const [copied, setCopied] = useState("");
  useEffect(() => {
    if (state) entries(state, schema).then((found) => setFields(withOwnNames(found)));
  }, [state]);
  if (!fields) return null;
  const all = snippets(fields, Boolean(apiKey()));
  const [, text] = all.find(([title]) => title === language);
  const copy = async () => {
    await copyText(text);
    setCopied(language);
  };
  return html`<details class="code"><summary>This request as code</summary>
    <div class="row spread">
      <div class="tabs" role="group" aria-label="Language">${all.map(
        ([title]) => html`<button type="button" key=${title}
        aria-pressed=${title === language ? "true" : "false"} onClick=${() => setLanguage(title)}>${title}</button>`,
      )}</div>
      <${Button} icon="copy" kind="small" label=${copied === language ? "Copied" : "Copy"} onClick=${copy} />
    </div>
    <pre tabindex="0" role="region" aria-label=${`The request in ${language}`}><code>${text}</code></pre>
    <${CodeFiles} fields=${fields} />
  </details>`;
}

const HIDDEN = new Set(["prompt", "image", "image_weights", "webhook_url"]);

function Settings({ view, schema }) {
  const rows = Object.entries(view.input).filter(
    ([name, value]) =>
      !HIDDEN.has(name) && value !== null && value !== "" && typeof value !== "object",
  );
  const { total_seconds: total, queue_seconds: queued } = view.metrics;
  return html`<details class="settings"><summary>Settings${total > 0 && ` · made in ${total.toFixed(1)} s`}</summary>
    <dl>${rows.map(([name, value]) => html`<div key=${name}><dt>${schema.label(name)}</dt><dd>${String(value)}</dd></div>`)}
      ${queued > 0 && html`<div><dt>Seconds in the queue</dt><dd>${queued.toFixed(1)}</dd></div>`}</dl>
  </details>`;
}

const ENDED = {
  failed: (view) => [view.error?.title ?? "The job failed", view.error?.detail ?? ""],
  canceled: () => ["Canceled", "The job was canceled before its pictures were finished."],
  expired: (view) => [
    view.error?.title ?? "Expired",
    view.error?.detail ?? "No worker took the job in time.",
  ],
};

/** The job that the page shows. */
export function Job({ job, schema, canceling, onCancel, onAgain, onInit, onPrompt, onSettings }) {
  const { view, preview, interrupted } = job;
  const images = usePictures(view, "images");
  const maps = usePictures(view, "maps");
  const state = usePrompts(view.input, schema);
  const [title, detail] = ENDED[view.status]?.(view) ?? [];
  return html`<div class="job"><div class="job-main">
    ${title && html`<div class=${`notice ${view.status === "canceled" ? "" : "error"}`} role="alert"><h2>${title}</h2><p>${detail}</p></div>`}
    ${!isFinal(view) && html`<${Progress} view=${view} preview=${preview} interrupted=${interrupted} onCancel=${onCancel} canceling=${canceling} />`}
    ${view.status === "succeeded" && html`<${Result} view=${view} images=${images} schema=${schema} onAgain=${onAgain} onInit=${onInit} onPrompt=${onPrompt} />`}
    ${(view.warnings ?? []).map((warning) => html`<p class="notice warning" key=${warning.code}>${warning.message}</p>`)}
    </div>
    <div class="job-side">
      <${Prompts} input=${view.input} state=${state} maps=${maps} />
      ${isFinal(view) && html`<${Button} kind="small" label="Reuse these settings" onClick=${onSettings} />`}
    </div>
    <div class="job-tools">
      <${Settings} view=${view} schema=${schema} />
      <${Code} state=${state} schema=${schema} />
    </div>
  </div>`;
}
