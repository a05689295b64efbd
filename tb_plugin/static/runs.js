/** The list of runs: colours, search, check boxes; widened, a table that sorts. */

import { change, el, number, placeInWords, short } from './dom.js';
import { runColour } from './host.js';

const UP = { name: true }; // columns that sort upwards first

const COLUMNS = [
  { key: 'name', title: 'Run', value: (run) => run.name.toLowerCase() },
  { key: 'best', title: 'Best DSE', value: (run) => run.state?.best?.dse ?? NaN },
  { key: 'at', title: 'At', value: (run) => run.state?.best?.x ?? NaN },
  { key: 'last', title: 'Last', value: (run) => run.state?.last?.dse ?? NaN },
  { key: 'change', title: 'Change', value: (run) => (run.state?.last?.dse ?? NaN) - (run.state?.best?.dse ?? NaN) },
  { key: 'alert', title: 'Alert', value: (run) => ({ firing: 2, pending: 1 })[run.state?.alert?.status] ?? 0 },
  { key: 'start', title: 'Started', value: (run) => run.start ?? 0 },
];

/** Whether a run's name matches a filter: a regular expression, or plain text where it is none. */
export function matcher(filter) {
  if (!filter) return () => true;
  try {
    const pattern = new RegExp(filter, 'i');
    return (run) => pattern.test(run.name) || pattern.test(run.id);
  } catch {
    return (run) => run.name.toLowerCase().includes(filter.toLowerCase());
  }
}

export class RunList {
  /**
   * @param {HTMLElement} root
   * @param {{toggle, only, focus, filter, sort, colour}} actions - what a click asks for
   */
  constructor(root, actions) {
    this.actions = actions;
    this.search = el('input', {
      type: 'search',
      placeholder: 'Filter runs (regex)',
      'aria-label': 'Filter runs',
      oninput: () => actions.filter(this.search.value),
    });
    this.all = el('input', { type: 'checkbox', 'aria-label': 'Show all listed runs', onchange: () => actions.all(this.all.checked) });
    this.wide = el('button.quiet', { type: 'button', text: 'Table', 'aria-pressed': 'false', onclick: () => this.widen() });
    this.order = el(
      'select',
      { 'aria-label': 'Sort runs', onchange: () => actions.sort(this.order.value, !UP[this.order.value]) },
      ...COLUMNS.map(({ key, title }) => el('option', { value: key, text: title })),
    );
    this.heads = COLUMNS.map(({ key, title }) =>
      el(`th.col-${key}`, { scope: 'col' }, el('button.sort', { type: 'button', text: title, onclick: () => this.resort(key) })),
    );
    this.body = el('tbody', {});
    this.summary = el('p.soft', {});
    root.append(
      el('header.rail-head', {}, el('h2', { text: 'Runs' }), this.wide),
      el('div.row', {}, this.search),
      el('div.row.compact-only', {}, el('label.soft', {}, this.all, 'all'), el('span.grow', {}), el('label.soft', {}, 'sort by ', this.order)),
      el('div.scroll', {}, el('table.runs', {}, el('thead', {}, el('tr', {}, el('th', {}), ...this.heads)), this.body)),
      this.summary,
    );
    this.root = root;
  }

  widen(on = !this.root.classList.contains('wide')) {
    this.root.classList.toggle('wide', on);
    this.wide.setAttribute('aria-pressed', String(on));
    this.wide.textContent = on ? 'List' : 'Table';
  }

  resort(key) {
    const { sort, descending } = this.view;
    this.actions.sort(key, sort === key ? !descending : !UP[key]);
  }

  /**
   * @param {Array} runs - those that match the filter
   * @param {{shown: Set, focus: string, filter: string, sort: string, descending: boolean, apart: Set, total: number}} view
   */
  draw(runs, view) {
    this.view = view;
    if (document.activeElement !== this.search) this.search.value = view.filter;
    this.order.value = view.sort;
    const { value } = COLUMNS.find(({ key }) => key === view.sort) ?? COLUMNS[COLUMNS.length - 1];
    const sign = view.descending ? -1 : 1;
    const sorted = [...runs].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return (x < y ? -1 : x > y ? 1 : a.name < b.name ? -1 : 1) * sign;
    });
    this.heads.forEach((head, i) => {
      const active = COLUMNS[i].key === view.sort;
      head.setAttribute('aria-sort', active ? (view.descending ? 'descending' : 'ascending') : 'none');
    });
    const shown = sorted.filter((run) => view.shown.has(run.id)).length;
    this.all.checked = shown === sorted.length && shown > 0;
    this.all.indeterminate = shown > 0 && shown < sorted.length;
    this.body.replaceChildren(...sorted.map((run) => this.row(run, view)));
    const hidden = view.total - runs.length;
    this.summary.textContent = `${shown} of ${runs.length} shown${hidden ? `, ${hidden} filtered out` : ''}`;
  }

  row(run, view) {
    const { state } = run;
    const best = state?.best;
    const last = state?.last;
    const alert = state?.alert?.status ?? 'none';
    const checked = view.shown.has(run.id);
    const where = best ? placeInWords(state.axis, best.x, best.epoch, best.step) : '';
    const colour = run.colour ?? runColour(run.index);
    const swatch = el('label.swatch', { title: 'Change colour', style: { background: colour } });
    swatch.append(
      el('input', { type: 'color', value: colour, 'aria-label': `Colour of ${short(run.name, 80)}`, onchange: (event) => this.actions.colour(run.id, event.target.value) }),
    );
    const sub = best
      ? `best ${number(best.dse)} at ${where}`
      : state?.n_failed
        ? `nothing scored, ${state.n_failed} failed`
        : 'nothing scored yet';
    return el(
      'tr',
      { 'aria-selected': String(run.id === view.focus), onclick: (event) => event.target.closest('label,input') || this.actions.focus(run.id) },
      el(
        'td.col-check',
        {},
        el('input', { type: 'checkbox', checked, 'aria-label': `Show ${short(run.name, 80)}`, onchange: () => this.actions.toggle(run.id) }),
        swatch,
      ),
      el(
        'td.col-name',
        { title: short(run.name, 300) },
        el('button.name', { type: 'button', text: run.name, ondblclick: () => this.actions.only(run.id) }),
        el('small.compact-only', { text: sub }),
        last && best && last.seq !== best.seq ? el('small.compact-only', { text: `last ${number(last.dse)} (${change(last.dse - best.dse)})` }) : null,
        view.apart.has(run.id) && checked ? el('small.apart', { text: 'other settings' }) : null,
      ),
      el('td.col-best.num', { text: best ? number(best.dse) : '–' }),
      el('td.col-at.num', { text: where || '–' }),
      el('td.col-last.num', { text: last ? number(last.dse) : '–' }),
      el('td.col-change.num', { text: best && last ? change(last.dse - best.dse) : '–' }),
      el('td.col-alert', {}, alertBadge(alert, state)),
    );
  }
}

function alertBadge(status, state) {
  if (status === 'none') return el('span.soft.wide-only', { text: state?.points > 2 ? 'none' : '–' });
  const mark = status === 'firing' ? '▲' : '△';
  const word = status === 'firing' ? 'firing' : 'pending';
  return el('span.badge.alert', { title: short(state.alert.message, 300) }, mark, el('span.wide-only', { text: ` ${word}` }));
}
