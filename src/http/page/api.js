// Owns: asking the bridge.
// Promises: an answer that is not as expected is an error with words for a person. The token stays in this tab's memory.

/** How long an answer may take, in milliseconds. */
const ANSWER_WITHIN = 8000;

let token = null;

/** The bridge asks for the admin token. */
export class Unauthorized extends Error {}

/** The bridge said no, with a reason. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** From now on, requests carry this admin token. */
export function useToken(text) {
  token = text;
}

/** The answer to GET of a path, which is relative to the page, as an object. */
export async function get(path) {
  const response = await open(path, AbortSignal.timeout(ANSWER_WITHIN));
  return response.json();
}

/** The answer itself, whose body may have no end. */
export async function open(path, signal) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { headers, signal, cache: "no-store", credentials: "same-origin" });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const message = problem.detail ?? `the bridge answered ${response.status}`;
  throw response.status === 401 ? new Unauthorized(message) : new Refused(response.status, message);
}
