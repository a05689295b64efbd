/** One checkpoint: its file, its numbers with errors and against the best, how it was measured. */

import { bytes, change, copyButton, count, el, moment, number, position } from './dom.js';
import { runColour } from './host.js';
import { placeOf } from './series.js';

const PARTS = [
  ['separability', 'Separability', 'how far apart the clusters are, less how wide they are'],
  ['m_inter', 'M_inter', 'distance of a token to the nearest other centroid'],
  ['m_intra_image', 'M_intra, image', 'cluster radius inside single images'],
  ['m_intra_batch', 'M_intra, batch', 'cluster radius inside groups of images'],
  ['m_dim', 'M_dim', 'share of the available directions that the tokens use'],
];

export class Card {
  constructor(root) {
    this.root = root;
    this.open = false; // whether the details are unfolded; kept from one checkpoint to the next
  }

  /** Nothing to show yet. */
  clear(text) {
    this.root.replaceChildren(el('h2', { text: 'Checkpoint' }), el('p.soft', { text }));
  }

  /**
   * @param {{run, row: number, index: number, meta: ?Object, isDefault: boolean}} shown - `index` into the run's line, -1 for
   *   a checkpoint that is not part of it
   */
  draw({ run, row, index, meta, isDefault }) {
    const c = run.points.columns;
    const { line } = run;
    const best = line.best;
    const scored = c.status[row] === 0;
    const rank = line.candidates.indexOf(index);
    const badges = [];
    if (index >= 0 && index === best) badges.push(el('span.badge.best', { text: '★ best' }));
    else if (rank > 0) badges.push(el('span.badge.best', { text: `candidate ${rank + 1}` }));
    if (c.status[row] === 1) badges.push(el('span.badge', { text: '✕ failed' }));
    if (c.status[row] === 2) badges.push(el('span.badge.alert', { text: '✕ invalid' }));
    if (scored && index < 0) badges.push(el('span.badge', { text: asideText(run, row) }));
    if (index >= 0 && line.untrained[index]) badges.push(el('span.badge', { text: 'untrained', title: 'drawn, but no part of λ, rules and best' }));
    const where = index >= 0 ? placeOf(run.points, line, index) : Number.isFinite(c.epoch[row]) ? position('epoch', c.epoch[row]) : position('step', c.step[row]);
    const path = meta?.path;
    const rows = [
      el('header.rail-head', {}, el('h2', { text: isDefault ? 'Best checkpoint' : 'Checkpoint' })),
      el('p.title', {}, el('i.swatch', { style: { background: run.colour ?? runColour(run.index) } }), el('strong', { text: where }), ...badges),
      path
        ? el('p.path', {}, el('code', { text: path, title: path }), copyButton(path))
        : el('p.path.soft', { text: meta === undefined ? 'reading the details…' : 'details are missing' }),
    ];
    if (meta?.reason) rows.push(el('p.reason', { text: meta.reason }));
    if (scored) rows.push(this.numbers(run, row, index));
    const known = facts(run, row, meta);
    if (known.length) {
      const details = el('details.more', { open: this.open, ontoggle: () => (this.open = details.open) }, el('summary', { text: 'How it was measured' }), el('dl.facts', {}, ...known));
      rows.push(details);
    }
    this.root.replaceChildren(...rows);
  }

  numbers(run, row, index) {
    const c = run.points.columns;
    const { line } = run;
    const bestRow = line.best >= 0 ? line.rows[line.best] : -1;
    const compared = bestRow >= 0 && bestRow !== row;
    const value = (name, at) => (name === 'separability' ? run.separability[at] : c[name][at]);
    const dse = (at) => run.separability[at] + line.lambda * c.m_dim[at];
    const row1 = (title, hint, number_, se, difference) =>
      el(
        'tr',
        { title: hint },
        el('th', { scope: 'row', text: title }),
        el('td.num', { text: number(number_) }),
        el('td.num.soft', { text: Number.isFinite(se) ? `± ${number(se)}` : '' }),
        compared ? el('td.num', { text: change(difference) }) : null,
      );
    const se = index >= 0 ? line.se[index] : NaN;
    return el(
      'table.numbers',
      {},
      el(
        'thead',
        {},
        el('tr', {}, el('th', {}), el('th.num', { text: 'value' }), el('th.num', { text: 'error', title: 'standard error over images' }), compared ? el('th.num', { text: 'vs best' }) : null),
      ),
      el(
        'tbody',
        {},
        row1('DSE', `separability + λ · M_dim at λ ${number(line.lambda)}`, dse(row), se, compared ? dse(row) - dse(bestRow) : NaN),
        ...PARTS.map(([name, title, hint]) =>
          row1(title, hint, value(name, row), c[`${name}_se`][row], compared ? value(name, row) - value(name, bestRow) : NaN),
        ),
      ),
    );
  }
}

/** Why a checkpoint that was scored is not on the line. */
function asideText({ points, line }, row) {
  const aside = line.aside.get(row);
  if (!aside) return line.settings === (points.columns.settings[row] || -1) ? 'not on the line' : 'other settings';
  if (aside.why === 'replaced') return 'replaced by a newer version';
  return line.index.has(aside.by) ? `same weights as ${placeOf(points, line, line.index.get(aside.by))}` : 'same weights as another';
}

function facts(run, row, meta) {
  const c = run.points.columns;
  const lines = [];
  const add = (name, value, title) => {
    if (value) lines.push(el('dt', { text: name }), el('dd', { text: value, title }));
  };
  const sourced = (axis, source) => {
    if (Number.isFinite(c[axis][row])) add(axis === 'epoch' ? 'Epoch' : 'Step', `${position('', c[axis][row]).trim()}${source ? ` (${source})` : ''}`);
  };
  sourced('epoch', meta?.epoch_source);
  sourced('step', meta?.step_source);
  if (meta) {
    const settings = run.state?.settings_by_fingerprint?.[meta.settings];
    add('Network', [meta.encoder, meta.arch].filter(Boolean).join(', '));
    add('Layout', meta.layout);
    // What changes the tokens and cannot be seen in the weights; where each was read is in the title.
    const said = settings?.facts ?? [];
    for (const [name, group] of [['Known', said.filter((fact) => !fact.assumed)], ['Assumed', said.filter((fact) => fact.assumed)]]) {
      add(name, group.map((fact) => `${fact.name} ${fact.value}`).join('; '), group.map((fact) => `${fact.name}: ${fact.source}`).join('\n'));
    }
    add('Also named', (meta.aliases ?? []).join(', '));
    const size = bytes(meta.size);
    add('File', [size === '–' ? '' : size, Number.isFinite(c.mtime[row]) ? `written ${moment(c.mtime[row])}` : ''].filter(Boolean).join(', '));
    for (const [name, value] of Object.entries(meta.companions ?? {})) add(name, number(value, 2));
    const stages = Object.entries(meta.seconds ?? {}).filter(([name, value]) => name !== 'total' && Number.isFinite(value));
    const spent = stages.map(([name, value]) => `${name} ${number(value, 1)}`).join(', ');
    add('Measured', `${moment(c.wall_time[row])}${Number.isFinite(c.seconds[row]) ? `, ${number(c.seconds[row], 1)} s` : ''}${spent ? ` (${spent})` : ''}`);
    if (settings) {
      add(
        'Settings',
        `${count(settings.num_images)} images, ${[settings.crop].flat().join(' × ')} px, batches of ${count(settings.batch)}, ${settings.precision}`,
        Object.entries(settings).filter(([name]) => name !== 'facts').map(([name, value]) => `${name}: ${value}`).join('\n'),
      );
    }
    if (meta.error) add('Error', meta.error);
  }
  return lines;
}
