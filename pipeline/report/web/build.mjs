// Builds ../site from src: npm ci --ignore-scripts && npm run build
import { createHash } from "node:crypto";
import { cpSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const site = process.argv[2] ?? "../site";
const options = {
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2022"],
  charset: "ascii",
  legalComments: "none",
  loader: { ".json": "json" },
  logLevel: "warning",
};

await build({
  ...options,
  entryPoints: ["src/overview.js", "src/scene.js"],
  outdir: site,
});
await build({ ...options, entryPoints: ["src/style.css"], outdir: site });
for (const page of ["index.html", "scene.html"]) cpSync(`src/${page}`, `${site}/${page}`);
writeFileSync(`${site}/LICENSES.txt`, licences());
writeFileSync(`${site}/SOURCES.sha256`, digest());

// The licences of all that is bundled, which they ask to go with it.
function licences() {
  const lock = JSON.parse(readFileSync("package-lock.json", "utf8"));
  const parts = Object.entries(lock.packages)
    .filter(([path, entry]) => path && !entry.dev)
    .map(([path, entry]) => {
      const file = readdirSync(path).find((name) => /^licen[cs]e/i.test(name));
      const text = file ? readFileSync(`${path}/${file}`, "utf8").trim() : entry.license;
      return `${path.replace("node_modules/", "")} ${entry.version} (${entry.license})\n\n${text}\n`;
    });
  const map = "Coastlines: Natural Earth, public domain, as packed by world-atlas.\n";
  return [map, ...parts].join(`\n${"-".repeat(72)}\n\n`);
}

// What tests compare without Node: the sources that the site was built from.
function digest() {
  const names = ["build.mjs", "package-lock.json", ...readdirSync("src").map((name) => `src/${name}`)];
  const hash = createHash("sha256");
  for (const name of names.sort()) hash.update(name).update("\0").update(readFileSync(name)).update("\0");
  return `${hash.digest("hex")}\n`;
}
