#!/usr/bin/env bash
# The dashboards against Grafana's own types: a JSON schema is made from npm's @grafana/schema, and ajv compares. Needs
# node and npm; what it installs goes into a temporary folder.
set -euo pipefail
boards=$(cd "$(dirname "$0")/../grafana/dashboards" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init --yes > /dev/null
npm install --no-audit --no-fund --silent \
    @grafana/schema@13.2.3 typescript@5.9.3 ts-json-schema-generator@2.4.0 ajv@8.17.1
types=node_modules/@grafana/schema/dist/types/raw
make_schema() { # FILE TYPE
    npx ts-json-schema-generator --path "$types/$1/x/types.gen.d.ts" --type "$2" --no-type-check
}
make_schema dashboard Dashboard > dashboard.json
for panel in timeseries stat bargauge; do
    make_schema "composable/$panel/panelcfg" Options > "$panel.json"
done
make_schema composable/timeseries/panelcfg FieldConfig > custom.json

cat > compare.js <<'JS'
const fs = require("fs"), Ajv = require("ajv");
const read = (path) => JSON.parse(fs.readFileSync(path));
const rule = (name) => new Ajv({strict: false, allErrors: true}).compile(read(name + ".json"));
const dashboard = rule("dashboard"), custom = rule("custom");
const options = {timeseries: rule("timeseries"), stat: rule("stat"), bargauge: rule("bargauge")};
let wrong = 0;
const compare = (what, validate, value) => {
  if (!validate(value)) for (const e of validate.errors) { wrong++; console.error(what, e.instancePath, e.message, e.params); }
};
for (const path of process.argv.slice(2)) {
  const board = read(path);
  compare(path, dashboard, board);
  for (const panel of board.panels) {
    compare(`${path}: ${panel.title}: options`, options[panel.type], panel.options);
    const drawn = panel.fieldConfig.defaults.custom;
    if (drawn) compare(`${path}: ${panel.title}: custom`, custom, drawn);
  }
  console.log(path, board.panels.length, "panels");
}
process.exit(wrong ? 1 : 0);
JS
node compare.js "$boards"/*.json
