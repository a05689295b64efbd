/** The backend's replies, decoded; see http_api.md. */

/** A reply that is no success. */
export class Refused extends Error {
  constructor(path, status) {
    super(`${path}: ${status ? `status ${status}` : 'TensorBoard does not answer'}`);
    this.status = status;
  }
}

async function get(route, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  let reply;
  try {
    reply = await fetch(query ? `${route}?${query}` : route);
  } catch {
    throw new Refused(route, 0);
  }
  if (!reply.ok) throw new Refused(route, reply.status);
  return reply;
}

const json = async (route, parameters) => (await get(route, parameters)).json();

/**
 * Columns of a packed reply, without copying the numbers.
 * @returns {{header: Object, columns: Object<string, Float64Array>, rows: number}}
 */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const columns = {};
  header.columns.forEach((name, index) => {
    columns[name] = new Float64Array(buffer, 4 + length + index * header.rows * 8, header.rows);
  });
  return { header, columns, rows: header.rows };
}

const packed = async (route, parameters) => unpack(await (await get(route, parameters)).arrayBuffer());

/** All runs with DSE data, and the server's time in seconds since 1970. */
export async function runs() {
  const reply = await get('runs');
  const told = Date.parse(reply.headers.get('Date') ?? '');
  return { now: (Number.isFinite(told) ? told : Date.now()) / 1000, ...(await reply.json()) };
}

/** All points of a run; those known already are not asked for again. */
export async function points(run, known = null) {
  const since = known?.rows ? known.columns.seq[known.rows - 1] : 0;
  const fresh = await packed('points', { run, since });
  if (!since) return fresh;
  if (fresh.header.total !== known.rows + fresh.rows) return packed('points', { run, since: 0 }); // the past has changed
  if (!fresh.rows) return { ...known, header: fresh.header };
  const columns = {};
  for (const name of fresh.header.columns) {
    columns[name] = new Float64Array(fresh.header.total);
    columns[name].set(known.columns[name]);
    columns[name].set(fresh.columns[name], known.rows);
  }
  return { header: fresh.header, columns, rows: fresh.header.total };
}

export const line = (run) => packed('line', { run });
export const companions = (run) => packed('companions', { run });
export const alerts = (run) => json('alerts', { run });
export const scalars = (run) => json('scalars', { run });
export const scalar = (run, tag) => packed('scalar', { run, tag });
export const mediaAddress = (run, seq) => `media?${new URLSearchParams({ run, seq })}`;

const SEQS_AT_ONCE = 200;

/** Metadata of evaluations by sequence number. */
export async function metadata(run, seqs) {
  const found = new Map();
  for (let start = 0; start < seqs.length; start += SEQS_AT_ONCE) {
    const some = seqs.slice(start, start + SEQS_AT_ONCE).join(',');
    for (const item of await json('meta', { run, seq: some })) found.set(item.seq, item);
  }
  return found;
}

/** Names of all runs that TensorBoard knows. */
export const everyRun = () => json('../../runs');
