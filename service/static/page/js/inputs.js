/** Controls that the schema of a field decides: range, number, choice, switch and text. */

import { FieldError, html } from "./elements.js";
import { CHOICES } from "./words.js";

const LONG_TEXT = 300;
/** A range with more steps than this would be a slider that nobody can set. */
const MOST_STOPS = 400;

const shown = (value) => (value === undefined || value === null ? "" : String(value));

/** Where `prefix` is given, several controls of one name stand on the page. */
const idOf = (field, prefix = "f") => `${prefix}-${field.name}`;

function described(id, field, error) {
  const ids = [field.help && `${id}-help`, error && `${id}-error`].filter(Boolean);
  return {
    id,
    "aria-describedby": ids.join(" ") || undefined,
    "aria-invalid": error ? "true" : undefined,
  };
}

function Frame({ id, field, error, onReset, children }) {
  return html`<div class=${`field ${field.kind}`}>
    <div class="field-head">
      <label for=${id}>${field.label}</label>
      ${
        onReset &&
        html`<button type="button" class="reset" onClick=${onReset}
        aria-label=${`Reset ${field.label} to its default`}>Reset</button>`
      }
    </div>
    ${children}
    ${field.help && html`<p class="help" id=${`${id}-help`}>${field.help}</p>`}
    <${FieldError} id=${`${id}-error`} message=${error} />
  </div>`;
}

function NumberInput({ id, field, value, error, onChange }) {
  const { minimum, maximum, step } = field;
  const take = (event) =>
    onChange(event.target.value === "" ? undefined : event.target.valueAsNumber);
  const bounded = minimum !== undefined && maximum !== undefined;
  const slides = bounded && (maximum - minimum) / step <= MOST_STOPS;
  const common = { min: minimum, max: maximum, onInput: take };
  return html`<div class=${`number ${slides ? "slides" : ""} ${value === undefined ? "unset" : ""}`}>
    ${
      slides &&
      html`<input type="range" tabindex="-1" aria-hidden="true" step=${step} ...${common}
      value=${value ?? (Number.isFinite(Number(field.fallback)) ? field.fallback : minimum)} />`
    }
    <input type="number" inputmode="decimal" step=${field.kind === "integer" ? step : "any"} ...${common}
      value=${shown(value)} placeholder=${shown(field.fallback) || "auto"} ...${described(id, field, error)} />
  </div>`;
}

function Choice({ id, field, value, error, onChange }) {
  const said = (choice) => CHOICES[field.name]?.[choice] ?? choice;
  const first = field.fallback === undefined ? "Default" : `${said(field.fallback)} (default)`;
  const others = field.choices.filter((choice) => choice !== field.fallback);
  return html`<select ...${described(id, field, error)} value=${shown(value)}
      onChange=${(event) => onChange(event.target.value || undefined)}>
    <option value="">${first}</option>
    ${others.map((choice) => html`<option key=${choice} value=${choice}>${said(choice)}</option>`)}
  </select>`;
}

function Text({ id, field, value, error, onChange, rows = 3, placeholder }) {
  const props = {
    ...described(id, field, error),
    value: shown(value),
    maxLength: field.maxLength,
    placeholder,
    onInput: (event) => onChange(event.target.value || undefined),
  };
  return field.maxLength > LONG_TEXT && !field.name.endsWith("url")
    ? html`<textarea rows=${rows} ...${props}></textarea>`
    : html`<input type="text" autocomplete="off" ...${props} />`;
}

/** One field with its label, description and error. `value` is undefined while it is not set. */
export function Field({ field, value, error, onChange, prefix, ...rest }) {
  const id = idOf(field, prefix);
  if (field.kind === "boolean") {
    return html`<div class="field boolean">
      <label class="check"><input type="checkbox" checked=${value === true}
        onChange=${(event) => onChange(event.target.checked || undefined)} ...${described(id, field, error)} />
        ${field.label}</label>
      ${field.help && html`<p class="help" id=${`${id}-help`}>${field.help}</p>`}
      <${FieldError} id=${`${id}-error`} message=${error} />
    </div>`;
  }
  const Input = { number: NumberInput, integer: NumberInput, choice: Choice }[field.kind] ?? Text;
  const resettable = value !== undefined && !["text", "choice"].includes(field.kind);
  return html`<${Frame} id=${id} field=${field} error=${error}
      onReset=${resettable ? () => onChange(undefined) : null}>
    <${Input} id=${id} field=${field} value=${value} error=${error} onChange=${onChange} ...${rest} />
  <//>`;
}
