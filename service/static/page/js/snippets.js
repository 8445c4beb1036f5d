/** A request as curl, Python and JavaScript to copy. */

const isText = ([, value]) => typeof value === "string";
const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const fileName = (name) => (/[";,\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name);
const quote = JSON.stringify;

/**
 * The fields with a name of its own for each different file, since code reads files by their
 * names, on some disks whatever their case. `called` is the name before.
 */
export function withOwnNames(fields) {
  const taken = new Map();
  return fields.map(([field, value]) => {
    if (isText([field, value])) return [field, value];
    const [, stem, ending = ""] = /^(.*?)(\.[^.]*)?$/.exec(value.name);
    let name = value.name;
    const isAnothers = () => (taken.get(name.toLowerCase()) ?? value.sha256) !== value.sha256;
    for (let number = 2; isAnothers(); number++) name = `${stem}-${number}${ending}`;
    taken.set(name.toLowerCase(), value.sha256);
    return [field, { ...value, name, called: value.name }];
  });
}

function curl(url, fields, withKey) {
  const lines = [`curl -sS --fail-with-body ${shell(url)}`];
  if (withKey) lines.push('-H "Authorization: Bearer $IMAGEPROMPT_KEY"');
  lines.push("-H 'Prefer: wait=60'");
  for (const [name, value] of fields) {
    lines.push(
      isText([name, value])
        ? `--form-string ${shell(`${name}=${value}`)}`
        : `-F ${shell(`${name}=@${fileName(value.name)}`)}`,
    );
  }
  return lines.join(" \\\n  ");
}

function python(url, fields, withKey) {
  const files = fields.filter((field) => !isText(field));
  const texts = fields.filter(isText);
  return [
    ...(withKey ? ["import os", ""] : []),
    "import requests",
    "",
    "answer = requests.post(",
    `    ${quote(url)},`,
    withKey
      ? '    headers={"Authorization": f"Bearer {os.environ[\'IMAGEPROMPT_KEY\']}", "Prefer": "wait=60"},'
      : '    headers={"Prefer": "wait=60"},',
    "    files=[",
    ...files.map(([name, value]) => `        (${quote(name)}, open(${quote(value.name)}, "rb")),`),
    "    ],",
    "    data={",
    ...texts.map(([name, value]) => `        ${quote(name)}: ${quote(value)},`),
    "    },",
    "    timeout=90,",
    ")",
    "answer.raise_for_status()",
    "job = answer.json()",
    'print(job["status"], [image["url"] for image in job["images"]])',
  ].join("\n");
}

function javascript(url, fields, withKey) {
  const authorization = withKey ? "Authorization: `Bearer ${process.env.IMAGEPROMPT_KEY}`, " : "";
  return [
    'import { openAsBlob } from "node:fs";',
    "",
    "const form = new FormData();",
    ...fields.map(([name, value]) =>
      isText([name, value])
        ? `form.append(${quote(name)}, ${quote(value)});`
        : `form.append(${quote(name)}, await openAsBlob(${quote(value.name)}), ${quote(value.name)});`,
    ),
    `const answer = await fetch(${quote(url)}, {`,
    '  method: "POST",',
    `  headers: { ${authorization}Prefer: "wait=60" },`,
    "  body: form,",
    "});",
    "if (!answer.ok) throw new Error(await answer.text());",
    "const job = await answer.json();",
    "console.log(job.status, job.images.map((image) => image.url));",
  ].join("\n");
}

/** `[title, text]` of each language. `fields` are those of `withOwnNames`. */
export function snippets(fields, withKey) {
  const url = new URL("generate", document.baseURI).href;
  return [
    ["curl", curl],
    ["Python", python],
    ["JavaScript", javascript],
  ].map(([title, write]) => [title, write(url, fields, withKey)]);
}
