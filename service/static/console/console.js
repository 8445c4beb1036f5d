/** Starts Scalar on the OpenAPI document, with nothing that would ask another host. */

/** Headers that a client may leave out: sent by default, an example value would do harm. */
const OPTIONAL_HEADERS = new Set([
  "Idempotency-Key",
  "If-None-Match",
  "Last-Event-ID",
  "last-event-id",
  "traceparent",
]);

async function open() {
  const [document_, guide] = await Promise.all([
    fetch("openapi.json").then((answer) => answer.json()),
    fetch("docs/guide.md").then((answer) => answer.text()),
  ]);
  const here = new URL(".", document.baseURI).href;
  document_.servers ??= [{ url: here.replace(/\/$/, "") }];
  const plain = "[This documentation without JavaScript](docs/plain)";
  document_.info.description += `\n\n${plain}\n\n${guide.replaceAll("http://127.0.0.1:8000/", here)}`;
  for (const operation of Object.values(document_.paths).flatMap(Object.values)) {
    for (const parameter of operation.parameters ?? []) {
      if (OPTIONAL_HEADERS.has(parameter.name)) delete parameter.example;
    }
    // What stands for a file there would be sent as a text.
    delete operation.requestBody?.content?.["multipart/form-data"]?.example?.image;
  }
  Scalar.createApiReference("#console", {
    content: document_,
    withDefaultFonts: false,
    telemetry: false,
    hideClientButton: true,
    showDeveloperTools: "never",
    agent: { disabled: true },
    mcp: { disabled: true },
    persistAuth: false,
  });
}

open();
