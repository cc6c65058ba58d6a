// Run an exported network knowing nothing but its manifest, in JavaScript: onnxruntime-node, and sharp to read images.
//
//   npm install
//   node run.mjs MODEL.onnx OUT IMAGE... [--focal PIXELS]
//
// For files exported with `--preprocess embedded`; MODEL.json lies beside the file. Writes to OUT for each image
// IMAGE.json (boxes, labels, probabilities) and IMAGE.TASK.bin, the map of every task that has one, row by row:
// a byte of class, or a little-endian float32 in the task's unit, for every pixel of the image.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, parse } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";

const words = process.argv.slice(2);
const at = words.indexOf("--focal");
const focal = at < 0 ? undefined : Number(words.splice(at, 2)[1]);
const [model, out, ...images] = words;
if (!images.length) {
  console.error("usage: node run.mjs MODEL.onnx OUT IMAGE... [--focal PIXELS]");
  process.exit(2);
}

const manifest = JSON.parse(readFileSync(model.replace(/\.onnx$/, ".json"), "utf8"));
if (manifest.input.preprocess !== "embedded") {
  console.error(`${model} wants letterboxed images. Export it with --preprocess embedded.`);
  process.exit(2);
}
const session = await InferenceSession.create(model);
mkdirSync(out, { recursive: true });

for (const path of images) {
  const { data, info } = await sharp(path).removeAlpha().toColourspace("srgb").raw().toBuffer({ resolveWithObject: true });
  const images = new Tensor("uint8", data, [1, info.height, info.width, 3]);
  const outputs = await session.run({ [manifest.input.name]: images }, Object.keys(manifest.outputs));
  const record = { size: [info.height, info.width] };
  const stem = join(out, parse(path).name);
  for (const [name, task] of Object.entries(manifest.tasks)) {
    const found = task.outputs.map((output) => outputs[`${name}.${output}`].data);
    if (task.annotation_type === "instances") {
      record[name] = instances(found, task);
    } else if (task.annotation_type === "label") {
      record[name] = Object.fromEntries(task.classes.map((label, i) => [label, found[0][i]]));
    } else {
      const values = task.classes.length ? found[0] : quantity(found[0], task, focal ?? task.default_focal * info.width);
      writeFileSync(`${stem}.${name}.bin`, Buffer.from(values.buffer, values.byteOffset, values.byteLength));
    }
  }
  writeFileSync(`${stem}.json`, JSON.stringify(record) + "\n");
  console.log(path);
}

/** The boxes over the task's threshold. */
function instances([boxes, scores, labels], task) {
  const found = [];
  scores.forEach((score, i) => {
    if (score > 0 && score >= task.score_threshold) {
      found.push({ box: [...boxes.slice(4 * i, 4 * i + 4)], label: task.classes[Number(labels[i])], score });
    }
  });
  return found;
}

/** In the task's unit: what is seen through the canonical lens, through one of `pixels` pixels of the image. */
function quantity(values, task, pixels) {
  const factor = task.canonical_focal ? Math.fround(pixels / task.canonical_focal) : 1;
  const [low, high] = task.limits ?? [-Infinity, Infinity];
  return values.map((value) => Math.min(Math.max(value * factor, low), high));
}
