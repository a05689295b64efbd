/** Files for other programs: all numbers of the runs shown as CSV, the charts as a picture. */

import * as api from './api.js';
import { download } from './dom.js';

const NUMBERS = [
  'epoch', 'step', 'mtime', 'wall_time', 'm_inter', 'm_intra_image', 'm_intra_batch', 'm_dim', 'm_inter_se', 'm_intra_image_se',
  'm_intra_batch_se', 'm_dim_se', 'separability_se', 'separability_dim_cov', 'seconds',
];
const STATUS = ['scored', 'failed', 'invalid'];

/** One cell: quoted where needed; a text that a spreadsheet would run as a formula gets an apostrophe in front. */
export function cell(value) {
  if (typeof value === 'number') return Number.isFinite(value) ? String(value) : '';
  let text = String(value ?? '');
  if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Every evaluation of some runs, whatever is zoomed or thinned on the screen. */
export async function csv(runs) {
  const lines = [
    ['run', 'path', 'seq', 'status', 'reason', 'settings', ...NUMBERS, 'separability', 'lambda', 'dse', 'dse_se', 'candidate', 'in_line', 'axis', 'at', 'aside'].join(','),
  ];
  for (const run of runs) {
    const { points, line } = run;
    const c = points.columns;
    const details = await api.metadata(run.id, Array.from(c.seq));
    for (let row = 0; row < points.rows; row++) {
      const meta = details.get(c.seq[row]);
      const index = run.indexOfRow.get(row);
      const rank = index === undefined ? -1 : line.candidates.indexOf(index);
      const scored = c.status[row] === 0;
      lines.push(
        [
          run.name, meta?.path, c.seq[row], STATUS[c.status[row]], meta?.reason, meta?.settings,
          ...NUMBERS.map((name) => c[name][row]),
          run.separability[row],
          scored ? line.lambda : NaN,
          run.separability[row] + line.lambda * c.m_dim[row],
          index === undefined ? NaN : line.se[index],
          rank < 0 ? '' : rank + 1,
          index === undefined ? 0 : 1,
          line.axis,
          index === undefined ? NaN : line.x[index],
          index !== undefined && line.untrained[index] ? 'untrained' : line.aside.get(row)?.why,
        ].map(cell).join(','),
      );
    }
  }
  return `${lines.join('\r\n')}\r\n`;
}

export async function saveCsv(runs) {
  download('dse.csv', new Blob([await csv(runs)], { type: 'text/csv;charset=utf-8' }));
}

export async function savePicture(charts) {
  download('dse.png', await charts.picture());
}
