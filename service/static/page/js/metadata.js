/**
 * The settings that a picture made here carries: PNG text chunk `imageprompt`, or the EXIF
 * UserComment of a JPEG or WebP. Both hold JSON; the file is read here and sent nowhere.
 */

const KEYWORD = "imageprompt";
const EXIF_IFD = 0x8769;
const USER_COMMENT = 0x9286;

const latin = (bytes) => new TextDecoder("latin1").decode(bytes);
const starts = (bytes, text, at = 0) => latin(bytes.subarray(at, at + text.length)) === text;

function* pngTexts(bytes, view) {
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const data = bytes.subarray(at + 8, at + 8 + length);
    const end = data.indexOf(0);
    if (starts(bytes, "tEXt", at + 4))
      yield [latin(data.subarray(0, end)), latin(data.subarray(end + 1))];
    if (starts(bytes, "iTXt", at + 4) && data[end + 1] === 0) {
      const language = data.indexOf(0, end + 3);
      const text = data.subarray(data.indexOf(0, language + 1) + 1);
      yield [latin(data.subarray(0, end)), new TextDecoder().decode(text)];
    }
    at += 12 + length;
  }
}

/** The TIFF structure with a JPEG's EXIF data (APP1), or `null`. */
function jpegExif(bytes, view) {
  for (let at = 2; at + 10 < bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda;) {
    const length = view.getUint16(at + 2);
    if (bytes[at + 1] === 0xe1 && starts(bytes, "Exif\0\0", at + 4))
      return bytes.subarray(at + 10, at + 2 + length);
    at += 2 + length;
  }
  return null;
}

/** The same of a WebP (chunk EXIF). */
function webpExif(bytes, view) {
  for (let at = 12; at + 8 < bytes.length;) {
    const length = view.getUint32(at + 4, true);
    if (starts(bytes, "EXIF", at)) {
      const data = bytes.subarray(at + 8, at + 8 + length);
      return starts(data, "Exif\0\0") ? data.subarray(6) : data;
    }
    at += 8 + length + (length % 2);
  }
  return null;
}

/** UserComment in a TIFF structure (EXIF 2.32, section 4.6.5), or `null`. */
function userComment(tiff) {
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  const little = view.getUint16(0) === 0x4949;
  const entry = (offset, wanted) => {
    for (let number = 0; number < view.getUint16(offset, little); number++) {
      const at = offset + 2 + 12 * number;
      if (view.getUint16(at, little) === wanted) return at;
    }
    return null;
  };
  const exif = entry(view.getUint32(4, little), EXIF_IFD);
  const at = exif === null ? null : entry(view.getUint32(exif + 8, little), USER_COMMENT);
  if (at === null) return null;
  const start = view.getUint32(at + 8, little);
  const value = tiff.subarray(start, start + view.getUint32(at + 4, little));
  const text = value.subarray(8);
  if (starts(value, "ASCII")) return new TextDecoder().decode(text);
  if (starts(value, "UNICODE"))
    return new TextDecoder(little ? "utf-16le" : "utf-16be").decode(text);
  return null;
}

function textOf(bytes) {
  const view = new DataView(bytes.buffer);
  if (starts(bytes, "PNG", 1)) {
    for (const [keyword, text] of pngTexts(bytes, view)) if (keyword === KEYWORD) return text;
    return null;
  }
  let tiff = null;
  if (bytes[0] === 0xff && bytes[1] === 0xd8) tiff = jpegExif(bytes, view);
  else if (starts(bytes, "RIFF") && starts(bytes, "WEBP", 8)) tiff = webpExif(bytes, view);
  return tiff && userComment(tiff);
}

/** The settings in a file, by the names of the form; `null` where it was not made here. */
export async function readSettings(file) {
  try {
    const text = textOf(new Uint8Array(await file.arrayBuffer()));
    const found = text === null ? null : JSON.parse(text);
    return found && typeof found === "object" && "seed" in found ? found : null;
  } catch {
    return null; // damaged, or another program's
  }
}
