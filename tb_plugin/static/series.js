/**
 * A run's evaluations as one line: the same numbers as dse_monitor/runs/series.py, so that a lambda can be tried here. The
 * order comes from the backend. Points are columns sorted by sequence number; see POINT_COLUMNS in dse_monitor/runs/record.py.
 */

import { placeInWords, position } from './dom.js';

const NEIGHBOURS = 2; // checkpoints on either side a candidate must not fall below
const CANDIDATES = 3;
const FEWEST_FOR_LAMBDA = 3;
const ROUNDING = 1e-12; // a deviation below this share of the values' size is the rounding of equal numbers

function spread(values) {
  let sum = 0;
  let largest = 0;
  for (const value of values) {
    sum += value;
    largest = Math.max(largest, Math.abs(value));
  }
  const mean = sum / values.length;
  let squares = 0;
  for (const value of values) squares += (value - mean) ** 2;
  const deviation = Math.sqrt(squares / values.length);
  return deviation > ROUNDING * largest ? deviation : 0;
}

/** Std(separability) / Std(m_dim); 1 with fewer than three values or where m_dim does not vary. */
export function adaptiveLambda(separability, mDim) {
  const s = [];
  const d = [];
  for (let i = 0; i < separability.length; i++) {
    if (Number.isFinite(separability[i]) && Number.isFinite(mDim[i])) {
      s.push(separability[i]);
      d.push(mDim[i]);
    }
  }
  const dimSpread = s.length < FEWEST_FOR_LAMBDA ? 0 : spread(d);
  return dimSpread === 0 ? 1 : spread(s) / dimSpread;
}

/** Indices of up to three local maxima (no higher neighbour within two positions), best first. */
export function candidates(scores) {
  const finite = (i) => i >= 0 && i < scores.length && Number.isFinite(scores[i]);
  const found = [];
  for (let i = 0; i < scores.length; i++) {
    if (!finite(i)) continue;
    let highest = true;
    for (let k = i - NEIGHBOURS; k <= i + NEIGHBOURS; k++) if (finite(k) && scores[k] > scores[i]) highest = false;
    if (highest) found.push(i);
  }
  return found.sort((a, b) => scores[b] - scores[a] || a - b).slice(0, CANDIDATES);
}

/** m_inter less the mean of the two radii, for every row. */
export function separabilityOf(points) {
  const c = points.columns;
  return Float64Array.from({ length: points.rows }, (_, i) => c.m_inter[i] - (c.m_intra_image[i] + c.m_intra_batch[i]) / 2);
}

/**
 * The order of a run's checkpoints, as the backend tells it (see http_api.md, `line`), in rows of its points.
 * @param {Object} points
 * @param {{header: Object, columns: Object, rows: number}} reply
 * @returns {{rows: number[], axis, x, epochs, untrained, index: Map, settings, superseded: number[], aside: Map, otherSettings, notes}}
 *   `epochs` are epochs done with their fractions (`estimated` where nobody says how long an epoch is), NaN where unknown; `aside` says why a row is not on the line
 */
export function orderOf(points, reply) {
  const rowOfSeq = new Map(Array.from(points.columns.seq, (seq, row) => [seq, row]));
  const { header, columns } = reply;
  const told = Array.from({ length: reply.rows }, (_, i) => i).filter((i) => rowOfSeq.has(columns.seq[i])); // others come later
  const pick = (name) => Float64Array.from(told, (i) => columns[name][i]);
  const rows = told.map((i) => rowOfSeq.get(columns.seq[i]));
  const aside = new Map();
  for (const [seq, why, by] of header.aside) if (rowOfSeq.has(seq)) aside.set(rowOfSeq.get(seq), { why, by: rowOfSeq.get(by) });
  return {
    rows,
    axis: header.axis,
    x: pick('x'),
    epochs: pick('epochs'),
    untrained: pick('untrained'),
    index: new Map(rows.map((row, i) => [row, i])),
    settings: header.settings,
    superseded: [...aside.keys()],
    aside,
    otherSettings: header.other_settings,
    notes: header.notes,
    estimated: header.estimated,
  };
}

/** Where the checkpoint with this index into a line stands, in words: `step 1,200 (epoch 3)`. */
export function placeOf(points, line, index) {
  const row = line.rows[index];
  return placeInWords(line.axis, line.x[index], points.columns.epoch[row], points.columns.step[row]);
}

/** The same of a position that an alert tells, on the axis the run had then; without more where that has changed since. */
export function placeAt(run, axis, at) {
  const index = run.line && axis === run.line.axis ? run.line.x.indexOf(at) : -1;
  return index >= 0 ? placeOf(run.points, run.line, index) : position(axis, at);
}

/** Standard error of DSE at a lambda, exact because the covariance is kept; NaN where unknown. */
export function standardError(points, row, lambda) {
  const c = points.columns;
  const variance =
    c.separability_se[row] ** 2 + lambda ** 2 * c.m_dim_se[row] ** 2 + 2 * lambda * c.separability_dim_cov[row];
  return Number.isFinite(variance) ? Math.sqrt(Math.max(variance, 0)) : NaN;
}

/**
 * The line of a run at a lambda (null: the adaptive one). The untrained network is on it, but no part of lambda and best.
 * @param {Object} points
 * @param {Object} order - see orderOf
 * @returns {{separability, mDim, adaptive, lambda, dse, se, candidates, best}} and all of `order`; `best` is an index into `rows`,
 *   or -1.
 */
export function lineOf(points, order, lambda = null) {
  const every = separabilityOf(points);
  const separability = Float64Array.from(order.rows, (row) => every[row]);
  const mDim = Float64Array.from(order.rows, (row) => points.columns.m_dim[row]);
  const trained = (_, i) => !order.untrained[i];
  const adaptive = adaptiveLambda(separability.filter(trained), mDim.filter(trained));
  const used = lambda ?? adaptive;
  const dse = separability.map((value, i) => value + used * mDim[i]);
  const se = Float64Array.from(order.rows, (row) => standardError(points, row, used));
  const found = candidates(dse.map((value, i) => (order.untrained[i] ? NaN : value)));
  return { ...order, separability, mDim, adaptive, lambda: used, dse, se, candidates: found, best: found[0] ?? -1 };
}

/** Indices into `rows` at which the trainer had gone back: a later file at an earlier position. */
export function resumes(points, line) {
  if (line.axis === 'order') return [];
  const c = points.columns;
  const at = (row) => (line.index.has(row) ? line.x[line.index.get(row)] : c[line.axis][row]);
  const measured = [...line.rows, ...line.superseded].filter((row) => Number.isFinite(c.mtime[row]));
  measured.sort((a, b) => c.mtime[a] - c.mtime[b] || a - b);
  const found = new Set();
  for (let i = 1; i < measured.length; i++) {
    const [before, now] = [measured[i - 1], measured[i]];
    const back = at(now) <= at(before) && c.mtime[now] > c.mtime[before];
    if (back && line.index.has(now)) found.add(line.index.get(now));
  }
  return [...found].sort((a, b) => a - b);
}
