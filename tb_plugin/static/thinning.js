/** From lines of any length to the table that uPlot draws. */

import uPlot from './vendor/uPlot.esm.js';

const ROWS_DRAWN = 20000; // above it a line is thinned to two points per pixel, for display only

/** Indices of x inside [low, high] and one more on either side. */
function visible(x, low, high) {
  let first = 0;
  let last = x.length;
  while (first + 1 < x.length && x[first + 1] < low) first++;
  while (last > first + 1 && x[last - 2] > high) last--;
  return [first, last];
}

/** Indices of the smallest and largest y in each of some buckets: what a line through all points would show. */
export function thin(y, first, last, buckets) {
  if (last - first <= 2 * buckets) return Array.from({ length: last - first }, (_, i) => first + i);
  const chosen = [];
  const size = (last - first) / buckets;
  for (let b = 0; b < buckets; b++) {
    const from = Math.floor(first + b * size);
    const to = Math.floor(first + (b + 1) * size);
    let [low, high] = [from, from];
    for (let i = from; i < to; i++) {
      if (y[i] < y[low] || Number.isNaN(y[low])) low = i;
      if (y[i] > y[high] || Number.isNaN(y[high])) high = i;
    }
    chosen.push(Math.min(low, high));
    if (low !== high) chosen.push(Math.max(low, high));
  }
  if (chosen[chosen.length - 1] !== last - 1) chosen.push(last - 1);
  return chosen;
}

/** Whether some lines have more points than are drawn. */
export const isThinned = (lines) => lines.reduce((sum, line) => sum + line.x.length, 0) > ROWS_DRAWN;

/** uPlot's aligned table of a panel's lines: x, then y (and the band's edges) of each. */
export function tableOf(lines, zoom, width) {
  const thinned = isThinned(lines);
  const gap = (value) => (Number.isFinite(value) ? value : null);
  const tables = lines.map((line) => {
    const [low, high] = zoom ?? [-Infinity, Infinity];
    const [first, last] = visible(line.x, low, high);
    const all = thinned ? thin(line.y, first, last, width) : null;
    const at = all ?? Array.from({ length: line.x.length }, (_, i) => i);
    const table = [at.map((i) => line.x[i]), at.map((i) => gap(line.y[i]))];
    if (line.error) {
      table.push(at.map((i) => gap(line.y[i] + line.error[i])), at.map((i) => gap(line.y[i] - line.error[i])));
    }
    return table;
  });
  if (!tables.length) return [[], []];
  return tables.length === 1 ? tables[0] : uPlot.join(tables);
}

/** Index of the element nearest to a value in ascending numbers; -1 for none. */
export function nearestIndex(ascending, value) {
  if (!ascending.length) return -1;
  let [low, high] = [0, ascending.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - ascending[low - 1] < ascending[low] - value ? low - 1 : low;
}
