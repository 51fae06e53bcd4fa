// Builds serving/explorer/vendor/ from npm. In an empty folder that holds copies of this file and of record.py:
//
//   npm install regl-scatterplot@1.16.0 uplot@1.6.32 esbuild@0.28
//   node build.mjs --record        a bundle that lists regl's draw commands
//   python record.py URL           drives a running server's page with that bundle, and writes draw_commands.json
//   node build.mjs                 vendor.js, vendor.css
//
// regl compiles its draw commands with `new Function`, which the page's Content-Security-Policy forbids. Their sources
// are the same on every machine, so that they are recorded once and become plain functions of the bundle. Should a
// machine ask for one that was not recorded, regl fails, and the page draws its map without WebGL.
import { build } from "esbuild";
import { copyFileSync, readFileSync } from "node:fs";

const isRecording = process.argv.includes("--record");

// Of 53 bits (cyrb53): enough to tell a few commands apart, and the same in the browser.
const HASH = `function hash(text) {
  let a = 0xdeadbeef, b = 0x41c6ce57;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    a = Math.imul(a ^ c, 2654435761);
    b = Math.imul(b ^ c, 1597334677);
  }
  a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909);
  return (4294967296 * (2097151 & b) + (a >>> 0)).toString(36);
}`;
const hash = new Function(`${HASH}; return hash`)();

function commands() {
  if (isRecording) {
    return `module.exports.reglCommand = (names, source) => {
      (window.reglSources ??= new Map()).set(names.join() + "|" + source, [names, source]);
      return Function(...names, source);
    }`;
  }
  const recorded = JSON.parse(readFileSync("draw_commands.json", "utf8"));
  const entries = recorded.map(([names, source]) => {
    const body = source.replace(/^"use strict";\s*/, "");
    return `${JSON.stringify(hash(names.join() + "|" + source))}: function (${names.join()}) {\n${body}\n}`;
  });
  return `"use strict";
    ${HASH}
    const recorded = {${entries.join(",\n")}};
    module.exports.reglCommand = (names, source) => {
      const found = recorded[hash(names.join() + "|" + source)];
      if (!found) throw new Error("this machine needs a draw command that the bundle does not hold");
      return found;
    }`;
}

function replaceOnce(text, before, after) {
  if (text.split(before).length !== 2) throw new Error(`expected once: ${before}`);
  return text.replace(before, () => after);
}

const withoutEval = {
  name: "without-eval",
  setup(builder) {
    builder.onResolve({ filter: /^draw-commands$/ }, () => ({ path: "draw-commands", namespace: "recorded" }));
    builder.onLoad({ filter: /.*/, namespace: "recorded" }, () => ({ contents: commands() }));
    builder.onLoad({ filter: /regl[/\\]dist[/\\]regl\.js$/ }, ({ path }) => {
      let text = readFileSync(path, "utf8");
      text = replaceOnce(text, "Function.apply(null, linkedNames.concat(src))", "reglCommand(linkedNames, src)");
      // Code for vertex attributes is written out for each that the machine has; every WebGL has eight.
      text = replaceOnce(text, "maxAttributes: gl.getParameter(GL_MAX_VERTEX_ATTRIBS)", "maxAttributes: 8");
      return { contents: `const { reglCommand } = require("draw-commands");\n${text}`, loader: "js" };
    });
    builder.onLoad({ filter: /regl-scatterplot\.esm\.js$/ }, ({ path }) => {
      // A <style> element is inline style to the policy; a constructed sheet is not.
      const text = replaceOnce(
        readFileSync(path, "utf8"),
        `    const lassoStyleEl = document.createElement('style');
    document.head.appendChild(lassoStyleEl);
    cachedLassoStylesheets = lassoStyleEl.sheet;`,
        `    cachedLassoStylesheets = new CSSStyleSheet();
    document.adoptedStyleSheets.push(cachedLassoStylesheets);`,
      );
      return { contents: text, loader: "js" };
    });
  },
};

await build({
  stdin: {
    contents: `export { default as createScatterplot } from "regl-scatterplot"; export { default as uPlot } from "uplot";`,
    resolveDir: process.cwd(),
  },
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  banner: { js: "// regl-scatterplot, uPlot and what they need; licences in LICENSES.txt, made by docs/explorer_bundle/build.mjs" },
  plugins: [withoutEval],
  outfile: isRecording ? "vendor.recording.js" : "vendor.js",
});
copyFileSync("node_modules/uplot/dist/uPlot.min.css", "vendor.css");
