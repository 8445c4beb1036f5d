/**
 * Pictures given to the form, kept in this browser under their SHA-256.
 *
 * The service names a job's uploads by it and hands them out to nobody, so this is what lets a
 * reload, the history and the settings of a dropped picture find them again.
 */

const NAME = "imageprompt";
const FILES = "files";
const MOST_BYTES = 200 * 2 ** 20;
const memory = new Map();

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

let opened;
function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(FILES, { keyPath: "sha256" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

const files = async (mode) => (await open()).transaction(FILES, mode).objectStore(FILES);

/** Keep a file; of more than 200 MB in all, those used longest ago are dropped. */
export async function keep(sha256, file, name) {
  memory.set(sha256, { file, name });
  try {
    await settled((await files("readwrite")).put({ sha256, file, name, usedAt: Date.now() }));
    await prune();
  } catch {
    // A private window may refuse; what is in memory lasts until the page is closed.
  }
}

async function prune() {
  const entries = await settled((await files("readonly")).getAll());
  entries.sort((one, other) => other.usedAt - one.usedAt);
  let bytes = 0;
  const old = entries.filter((entry) => (bytes += entry.file.size) > MOST_BYTES);
  if (!old.length) return;
  const store = await files("readwrite");
  for (const entry of old) store.delete(entry.sha256);
}

/** `{file, name}` of a kept file, or `undefined`. */
export async function kept(sha256) {
  if (memory.has(sha256)) return memory.get(sha256);
  try {
    return await settled((await files("readonly")).get(sha256));
  } catch {
    return undefined;
  }
}

/** Delete all that is kept. */
export async function forgetAll() {
  memory.clear();
  try {
    await settled((await files("readwrite")).clear());
  } catch {
    // Nothing was kept.
  }
}

/** SHA-256 of a blob in hexadecimal. */
export async function sha256(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const digest = crypto.subtle
    ? new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))
    : digestOf(bytes);
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The first 32 bits of the fractional part of a root of each of the first `most` primes. */
function fractions(most, power) {
  const primes = [];
  for (let number = 2; primes.length < most; number++) {
    if (primes.every((prime) => number % prime)) primes.push(number);
  }
  return primes.map((prime) => ((prime ** power % 1) * 2 ** 32) | 0);
}

/** FIPS 180-4, section 6.2; for pages without TLS, where browsers offer no `crypto.subtle`. */
export function digestOf(bytes) {
  const constants = fractions(64, 1 / 3);
  const state = fractions(8, 1 / 2);
  const padded = new Uint8Array((((bytes.length + 8) >> 6) + 1) << 6);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
  view.setUint32(padded.length - 4, (bytes.length << 3) >>> 0);
  const right = (word, by) => (word >>> by) | (word << (32 - by));
  const schedule = new Int32Array(64);
  for (let at = 0; at < padded.length; at += 64) {
    for (let i = 0; i < 64; i++) {
      if (i < 16) {
        schedule[i] = view.getInt32(at + 4 * i);
        continue;
      }
      const early = schedule[i - 15];
      const late = schedule[i - 2];
      schedule[i] =
        schedule[i - 16] +
        schedule[i - 7] +
        (right(early, 7) ^ right(early, 18) ^ (early >>> 3)) +
        (right(late, 17) ^ right(late, 19) ^ (late >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const chosen = (e & f) ^ (~e & g);
      const one =
        h + (right(e, 6) ^ right(e, 11) ^ right(e, 25)) + chosen + constants[i] + schedule[i];
      const two = (right(a, 2) ^ right(a, 13) ^ right(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => (state[i] = (state[i] + word) | 0));
  }
  const out = new DataView(new ArrayBuffer(32));
  state.forEach((word, i) => out.setInt32(4 * i, word));
  return new Uint8Array(out.buffer);
}
