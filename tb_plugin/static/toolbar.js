/** The controls above the charts, and those beside the titles of two of them. */

import { AXES, AXIS_NAMES } from './axes.js';
import { el, number, short } from './dom.js';
import { PANELS } from './scene.js';

const LAMBDA_SPAN = 3; // the slider ends at this multiple of the adaptive lambda

export class Toolbar {
  /** @param {{set, zoom, tag, csv, picture}} actions - what a control asks for */
  constructor(actions) {
    this.actions = actions;
    this.lambdaSlider = el('input', { type: 'range', min: 0, max: 3, step: 'any', 'aria-label': 'Lambda', oninput: () => actions.set({ lambda: Number(this.lambdaSlider.value) }) });
    this.lambdaField = el('input.lambda-field', {
      type: 'number',
      min: 0,
      step: 0.01,
      'aria-label': 'Lambda',
      onchange: () => {
        const value = Number(this.lambdaField.value);
        actions.set({ lambda: this.lambdaField.value !== '' && Number.isFinite(value) && value >= 0 ? value : null });
      },
    });
    this.adaptive = el('button.toggle', {
      type: 'button',
      text: 'adaptive',
      title: 'Std(separability) / Std(M_dim) over the run: both terms weigh the same',
      onclick: () => actions.set({ lambda: null }),
    });
    this.axisButtons = AXES.map((axis) => el('button', { type: 'button', text: AXIS_NAMES[axis], 'data-axis': axis, onclick: () => actions.set({ axis, zoom: null }) }));
    this.reset = el('button.quiet', { type: 'button', text: 'Reset zoom', title: 'Escape, or double-click a chart', onclick: () => actions.zoom(null) });
    this.panelMenu = el('div.menu-body', { role: 'group', 'aria-label': 'Panels' });
    const menu = (label, ...items) => el('details.menu', {}, el('summary', { text: label }), ...items);
    this.menus = [
      menu('Panels', this.panelMenu),
      menu(
        'Export',
        el(
          'div.menu-body',
          {},
          el('button.item', { type: 'button', text: 'CSV, all numbers', onclick: () => actions.csv() }),
          el('button.item', { type: 'button', text: 'PNG of the charts', onclick: () => actions.picture() }),
        ),
      ),
    ];
    document.addEventListener('click', (event) => {
      for (const item of this.menus) if (!item.contains(event.target)) item.open = false;
    });
    this.tagSelect = el('select.tag', { 'aria-label': 'Scalar', onchange: () => actions.tag(this.tagSelect.value) });
    this.logBox = el('input', { type: 'checkbox', onchange: () => actions.set({ logLoss: this.logBox.checked }) });
    this.lossTools = el('span', {}, this.tagSelect, el('label.soft', {}, this.logBox, 'log'));
    this.root = el(
      'div.toolbar',
      { role: 'toolbar', 'aria-label': 'Charts' },
      el('label.lambda', { title: 'DSE = separability + λ · M_dim' }, 'λ', this.lambdaSlider, this.lambdaField),
      this.adaptive,
      el('span.grow', {}),
      el('span.segments', { role: 'group', 'aria-label': 'Axis' }, ...this.axisButtons),
      ...this.menus,
    );
  }

  /** Show the choices; `focus` is the run in focus, if it is known. */
  draw(focus, view) {
    this.view = view;
    const adaptive = focus?.line?.adaptive ?? 1;
    const value = view.lambda ?? adaptive;
    this.lambdaSlider.max = Math.max(LAMBDA_SPAN * adaptive, value);
    this.lambdaSlider.value = value;
    if (document.activeElement !== this.lambdaField) this.lambdaField.value = Number(value.toPrecision(3));
    this.adaptive.setAttribute('aria-pressed', String(view.lambda === null));
    this.adaptive.textContent = view.lambda === null ? 'adaptive' : `back to ${number(adaptive, 2)}`;
    const axis = view.axis ?? focus?.line?.axis;
    for (const button of this.axisButtons) button.setAttribute('aria-pressed', String(button.dataset.axis === axis));
    this.reset.hidden = view.zoom === null;
    const boxes = [
      ...PANELS.map(({ key, title }) => [key, title]),
      ...view.companionNames.map((name) => [`companion:${name}`, name]),
    ];
    const names = JSON.stringify(boxes);
    if (names !== this.panelNames) {
      this.panelNames = names;
      this.panelMenu.replaceChildren(
        ...boxes.map(([key, title]) =>
          el(
            'label.item',
            {},
            el('input', {
              type: 'checkbox',
              'data-panel': key,
              onchange: (event) => {
                const panels = new Set(this.view.panels);
                if (event.target.checked) panels.add(key);
                else panels.delete(key);
                this.actions.set({ panels });
              },
            }),
            short(title, 60),
          ),
        ),
      );
    }
    for (const box of this.panelMenu.querySelectorAll('input')) box.checked = view.panels.has(box.dataset.panel);
    this.logBox.checked = view.logLoss;
  }

  /** The scalars to choose from. */
  drawTag(focus) {
    const tags = [...new Set((focus.scalars ?? []).map((item) => item.tag))];
    const key = JSON.stringify([tags, focus.lossTag, focus.loss?.rows > 0]);
    if (key === this.tagKey) return;
    this.tagKey = key;
    const options = tags.map((tag) => el('option', { value: tag, text: short(tag, 80) }));
    if (!focus.loss?.rows) options.unshift(el('option', { value: '', text: 'choose…' }));
    this.tagSelect.replaceChildren(...options);
    this.tagSelect.value = focus.loss?.rows ? focus.lossTag : '';
    this.lossTools.hidden = !tags.length;
  }
}
