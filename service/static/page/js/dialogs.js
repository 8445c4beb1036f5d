/** Small dialogs: the API key, and a dropped picture that was made here. */

import { useState } from "../vendor/hooks.js";
import { apiKey, keyProblem, setApiKey } from "./api.js";
import { Button, html } from "./elements.js";
import { useModal } from "./focus.js";
import { forgetAll } from "./store.js";

function Modal({ id, title, onClose, children }) {
  const dialog = useModal();
  return html`<dialog ref=${dialog} aria-labelledby=${id} onClose=${onClose}><h2 id=${id}>${title}</h2>${children}</dialog>`;
}

export function KeyDialog({ message, onDone, onClose }) {
  const [key, setKey] = useState(apiKey());
  const [forgotten, setForgotten] = useState(false);
  const [said, setSaid] = useState(message);
  const save = async (event) => {
    event.preventDefault();
    const problem = await keyProblem(key.trim());
    setSaid(problem?.detail);
    if (problem) return;
    setApiKey(key.trim());
    onDone();
  };
  return html`<${Modal} id="key-title" title="API key" onClose=${onClose}>
    <form onSubmit=${save}>
      ${said && html`<p class="field-error" role="alert" id="key-error">${said}</p>`}
      <div class="field"><label for="key">Key</label>
        <input id="key" type="password" autocomplete="off" spellcheck="false" required value=${key} aria-describedby=${said ? "key-error key-help" : "key-help"}
          onInput=${(event) => setKey(event.target.value)} /></div>
      <p class="help" id="key-help">Kept in this tab until it is closed, and sent to this service alone.
        Its operator makes one with <code>imageprompt keys create NAME</code>.</p>
      <div class="row end">
        ${apiKey() && html`<${Button} label="Remove the key" onClick=${() => (setApiKey(""), onDone())} />`}
        <button class="button primary" type="submit">Use this key</button>
      </div>
    </form>
    <hr />
    <p class="help">Pictures that you add are kept in this browser, so that the history can show them.</p>
    <${Button} kind="small" label=${forgotten ? "Deleted" : "Delete kept pictures"} disabled=${forgotten}
      onClick=${async () => (await forgetAll(), setForgotten(true))} />
  <//>`;
}

/** Asked when a picture that was made here is added: is it an image prompt, or its settings? */
export function MadeHereDialog({ picture, onSettings, onPicture, onClose }) {
  return html`<${Modal} id="made-title" title="This picture was made here" onClose=${onClose}>
    <img class="made-here" src=${picture.url} alt=${picture.name} />
    <p>It carries the settings that it was made with.</p>
    <div class="row end">
      <${Button} label="Use as image prompt" onClick=${onPicture} />
      <${Button} kind="primary" label="Restore its settings" onClick=${onSettings} />
    </div>
  <//>`;
}
