// The API reference: draws /openapi.json, so that it says what the server does and needs no network.
"use strict";

const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child != null));
  return made;
}

function typeOf(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  if (schema.additionalProperties?.type || schema.additionalProperties?.$ref) {
    return `map of ${typeOf(schema.additionalProperties)}`;
  }
  return schema.format ?? schema.type ?? "any";
}

function rangeOf(schema = {}) {
  const least = schema.minimum ?? (schema.exclusiveMinimum == null ? null : `over ${schema.exclusiveMinimum}`);
  const most = schema.maximum;
  if (least == null && most == null) return "";
  return ` (${least ?? "…"} to ${most ?? "…"})`;
}

function table(caption, rows) {
  if (rows.length === 0) return null;
  const body = rows.map(([name, type, words]) => element("tr", {},
    element("th", {}, element("code", { textContent: name })),
    element("td", { textContent: type }),
    element("td", { textContent: words })));
  return element("table", {}, element("caption", { textContent: caption }), element("tbody", {}, ...body));
}

function fields(schema = {}) {
  return Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const words = [field.description ?? ""];
    if (schema.required?.includes(name) && field.description) words.push("Required.");
    if (field.default != null && field.default !== "") words.push(`Default: ${JSON.stringify(field.default)}.`);
    return [name, typeOf(field) + rangeOf(field), words.join(" ")];
  });
}

function operation(path, method, details) {
  const parameters = (details.parameters ?? []).map((one) =>
    [one.name, `${one.in}, ${typeOf(one.schema)}${rangeOf(one.schema)}`, one.description ?? one.schema?.description ?? ""]);
  const answers = Object.entries(details.responses).map(([status, answer]) => {
    const kinds = Object.entries(answer.content ?? {}).map(([kind, body]) =>
      body.schema?.$ref ? `${kind}: ${typeOf(body.schema)}` : kind);
    return [status, kinds.join(", "), answer.description];
  });
  const form = details.requestBody?.content?.["multipart/form-data"]?.schema;
  return element("details", { className: "operation" },
    element("summary", {}, element("b", { textContent: method.toUpperCase() }), path),
    element("p", { textContent: details.description ?? details.summary }),
    table("Parameters", parameters),
    form ? table("Form fields", fields(form)) : null,
    table("Answers", answers));
}

async function start() {
  const api = await (await fetch("/openapi.json")).json();
  $("about").textContent = api.info.description.replaceAll("`", "");
  $("example").textContent = [
    "# On a server with API keys add to each: -H 'Authorization: Bearer KEY'",
    `curl -F file=@small.png ${location.origin}/v1/upscale`,
    `curl ${location.origin}/v1/jobs/ID`,
    `curl -o large.png ${location.origin}/v1/jobs/ID/result`,
  ].join("\n");
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, details] of Object.entries(methods)) $("operations").append(operation(path, method, details));
  }
  for (const [name, schema] of Object.entries(api.components.schemas)) {
    $("schemas").append(element("details", { className: "operation" },
      element("summary", { textContent: name }),
      element("p", { textContent: schema.description ?? "" }),
      table("Fields", fields(schema))));
  }
}

start();
