// Scalar without anything that would ask another host: fonts, telemetry, proxy, agent, client.
Scalar.createApiReference("#console", {
  url: "openapi.json",
  withDefaultFonts: false,
  telemetry: false,
  hideClientButton: true,
  showDeveloperTools: "never",
  agent: { disabled: true },
  mcp: { disabled: true },
  persistAuth: false,
});
