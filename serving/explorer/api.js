// Requests to the server that sent this page, and to no other: keys, problem documents, safetensors.

const KEY = "armillary-key";
let asking = null;

/** An error that the server told of: a problem document (RFC 9457). */
export class Problem extends Error {
  constructor(status, document) {
    super(document?.detail || `The server answered ${status}`);
    this.status = status;
    this.title = document?.title || "";
    this.errors = document?.errors || [];
  }
}

/** The answer to a request. Asks for a key where one is needed. Throws Problem. */
export async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The server does not answer." });
  }
  if (answer.status === 401) {
    if (sessionStorage.getItem(KEY) === key) await askForKey();
    return request(path, options);
  }
  if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => null));
  return answer;
}

export async function get(path, options) {
  return (await request(path, options)).json();
}

export async function post(path, body, options) {
  const headers = { "Content-Type": "application/json" };
  return (await request(path, { method: "POST", headers, body: JSON.stringify(body), ...options })).json();
}

/** The address of a file of an object. */
export function fileOf(objectId, file, parameters = {}) {
  const query = new URLSearchParams(parameters);
  return `/v1/objects/${encodeURIComponent(objectId)}/${file}?${query}`;
}

/** An address within this page of what lies at `path`: pictures need the key, which <img> does not send. */
export async function blobUrl(path, options) {
  return URL.createObjectURL(await (await request(path, options)).blob());
}

/** Let the link `anchor` download a file, with the key. */
export function downloads(anchor, path, name) {
  anchor.href = path;
  anchor.download = name;
  anchor.onclick = async (event) => {
    if (!sessionStorage.getItem(KEY)) return;
    event.preventDefault();
    const link = document.createElement("a");
    link.href = await blobUrl(path);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
}

/** The tensors (float32) and metadata of a safetensors file; null where the server is still making it (202). */
export async function getTensors(path) {
  const answer = await request(path);
  if (answer.status === 202) return null;
  const content = await answer.arrayBuffer();
  const length = Number(new DataView(content).getBigUint64(0, true));
  const { __metadata__: metadata, ...entries } = JSON.parse(new TextDecoder().decode(new Uint8Array(content, 8, length)));
  const tensors = {};
  for (const [name, { dtype, data_offsets: [start, end] }] of Object.entries(entries)) {
    if (dtype !== "F32") throw new Error(`expected float32 in ${name}, found ${dtype}`);
    tensors[name] = new Float32Array(content.slice(8 + length + start, 8 + length + end));
  }
  return { tensors, metadata };
}

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const box = document.getElementById("key");
    box.value = "";
    dialog.onclose = () => {
      if (!box.value) return dialog.showModal();
      sessionStorage.setItem(KEY, box.value.trim());
      box.value = "";
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}
