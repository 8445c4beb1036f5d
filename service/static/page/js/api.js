/** Requests to the service: with the API key, with errors as problems, and streams that resume. */

const KEY = "imageprompt.key";
const FIRST_RETRY_MS = 1000;
const LONGEST_RETRY_MS = 15000;

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** An error answer (RFC 9457), or no answer at all: then `status` is 0. */
export class Problem extends Error {
  constructor({ status, title, detail, errors = [], retryAfter = null, instance = null }) {
    super(detail);
    Object.assign(this, { status, title, detail, errors, retryAfter, instance });
  }

  /** Whether the same request may go well later. */
  get mayPass() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

const KEY_WANTED = "This service needs an API key. Ask its operator for one.";
const KEY_UNKNOWN = "This API key is not valid. Ask the service's operator for one.";

const unreachable = () =>
  new Problem({
    status: 0,
    title: "No connection",
    detail: "The service does not answer. Check the connection and try again.",
  });

async function problemOf(response, key) {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const plain = {
    status: response.status,
    title: `Error ${response.status}`,
    detail: response.statusText,
  };
  const body = await response.json().catch(() => ({}));
  const problem = new Problem({ ...plain, ...body, retryAfter });
  if (problem.status === 401) problem.detail = key ? KEY_UNKNOWN : KEY_WANTED;
  return problem;
}

/** Send a request; `path` is relative to the service's root. Throws `Problem`. */
export async function call(path, { headers = {}, key = apiKey(), ...options } = {}) {
  const all = key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers: all });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (!response.ok) throw await problemOf(response, key);
  return response;
}

export const getJson = async (path, options) => (await call(path, options)).json();

/** Why a key is refused, or `null`; one that may not list jobs may have other rights. */
export async function keyProblem(key) {
  try {
    await call("jobs?limit=1", { key });
  } catch (problem) {
    if (problem.status !== 403) return problem;
  }
  return null;
}

/** Bytes of a picture of a job; from the service itself, since the page may ask no other host. */
export const getPicture = async (path) => (await call(`${path}?redirect=false`)).blob();

export const cancelJob = async (jobId) =>
  (await call(`jobs/${jobId}/cancel`, { method: "POST" })).json();

/** An id that no other request has; `crypto.randomUUID` is missing on pages without TLS. */
function idempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}

/** Queue a job; sent once more under the same key where the connection broke. */
export async function generate(form) {
  const options = { method: "POST", body: form, headers: { "Idempotency-Key": idempotencyKey() } };
  try {
    return await (await call("generate", options)).json();
  } catch (error) {
    if (!(error instanceof Problem) || error.status !== 0) throw error;
    return (await call("generate", options)).json();
  }
}

/** The events of a byte stream (WHATWG HTML, section 9.2.6). */
async function* parse(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { name: "message", data: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r/);
      rest = lines.pop();
      for (const line of lines) {
        const [, field, text] = /^([^:]*):? ?(.*)$/.exec(line);
        if (field === "data") event.data.push(text);
        else if (field === "event") event.name = text;
        else if (field === "id") event.id = text;
        if (line !== "") continue;
        if (event.data.length) yield { ...event, data: event.data.join("\n") };
        event = { name: "message", data: [], id: event.id };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/**
 * Follow a job to its end: yields `{name, data}` with the parsed data of each event, `done` last.
 * A broken stream is resumed after its last event; meanwhile `{name: "interrupted"}` is yielded.
 * Throws `Problem` where the job cannot be followed at all (no right, unknown, expired).
 */
export async function* follow(jobId, signal) {
  let last = null;
  let wait = FIRST_RETRY_MS;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const response = await call(`jobs/${jobId}/events`, { headers, signal });
      for await (const event of parse(response.body)) {
        wait = FIRST_RETRY_MS;
        last = event.id ?? last;
        yield { name: event.name, data: JSON.parse(event.data) };
        if (event.name === "done") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (
        error instanceof Problem &&
        error.status >= 400 &&
        error.status < 500 &&
        error.status !== 429
      )
        throw error;
    }
    yield { name: "interrupted", data: null };
    await pause(wait, signal);
    wait = Math.min(2 * wait, LONGEST_RETRY_MS);
  }
}
