// The server. Every error is a sentence, with a word beside it.

export class Refused extends Error {
  constructor(sentence, kind, retryAfter = null) {
    super(sentence);
    this.kind = kind;
    this.retryAfter = retryAfter; // seconds
  }
}

export async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is it still running?", "offline", 3);
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({ detail: `The server answered with ${answer.status}.`, error: "bug" }));
  const after = Number(answer.headers.get("retry-after"));
  throw new Refused(told.detail, told.error, after > 0 ? after : null);
}

const asJson = (body, more = {}) => ({
  method: "POST",
  headers: { "content-type": "application/json", ...more.headers },
  body: JSON.stringify(body),
  signal: more.signal,
});

export const get = async (path, parameters = {}, signal = undefined) => {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(given).toString();
  return (await request(query ? `${path}?${query}` : path, { signal })).json();
};

export const post = async (path, body, signal = undefined) => {
  const answer = await request(path, asJson(body, { signal }));
  return answer.status === 204 ? null : answer.json();
};

/** Each line of the answer, as soon as it is there. */
export async function* lines(path, body, signal) {
  const answer = await request(path, asJson(body, { signal, headers: { accept: "application/x-ndjson" } }));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let told = 0;
  for (;;) {
    const { value, done } = await reader.read();
    rest += value ?? "";
    const whole = rest.split("\n");
    rest = whole.pop();
    for (const line of whole) {
      const item = JSON.parse(line);
      if (item.error && item.detail) throw new Refused(item.detail, item.error);
      told += 1;
      yield item;
    }
    if (done && told < (body.ids?.length ?? 0)) throw new Refused("The server broke off before all was answered.", "offline");
    if (done) return;
  }
}

export const thumbnail = (id, side) => `thumbnails/${id}?side=${side}`;
export const original = (id) => `images/${id}`;
