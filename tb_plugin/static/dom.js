/** Elements, text and numbers. Text reaches the page through textContent only, whatever it is. */

const LONGEST_TEXT = 600; // characters; what lies in an event file may be of any length

/**
 * An element with properties, attributes and children.
 * @param {string} kind - tag name, with `.class` suffixes
 * @param {Object} facts - `on*` listeners, `text`, `title`, properties; names with a dash become attributes
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {HTMLElement}
 */
export function el(kind, facts = {}, ...children) {
  const [tag, ...classes] = kind.split('.');
  const node = document.createElement(tag);
  if (classes.length) node.classList.add(...classes);
  for (const [name, value] of Object.entries(facts)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'text') node.textContent = short(value);
    else if (name === 'style') Object.entries(value).forEach(([key, v]) => node.style.setProperty(key, v));
    else if (name.includes('-') || name === 'role' || name === 'for') node.setAttribute(name, value === true ? '' : value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Text of bearable length. */
export function short(value, longest = LONGEST_TEXT) {
  const text = String(value ?? '');
  return text.length > longest ? `${text.slice(0, longest)}…` : text;
}

/** A number with a fixed number of decimals and a real minus sign; an en dash for none. */
export function number(value, decimals = 3) {
  if (!Number.isFinite(value)) return '–';
  return value.toFixed(decimals).replace(/^-(?=[0.]*$)/, '').replace('-', '−');
}

/** A change, always with its sign. */
export function change(value, decimals = 3) {
  if (!Number.isFinite(value)) return '–';
  return (value > 0 ? '+' : '') + number(value, decimals);
}

/** A whole number with thousands separated. */
export function count(value) {
  return Number.isFinite(value) ? Math.round(value).toLocaleString('en') : '–';
}

/** A position on an axis: `epoch 90`, `step 12,500`, a date. */
export function position(axis, value) {
  if (!Number.isFinite(value)) return `no ${axis}`;
  if (axis === 'wall') return moment(value);
  if (axis === 'relative') return `${number(value, 2)} h`;
  if (axis === 'order') return `checkpoint ${count(value)}`;
  const digits = Number.isInteger(value) ? 0 : value < 1 ? 3 : 2;
  return `${axis} ${value.toLocaleString('en', { maximumFractionDigits: digits })}`;
}

/** A position and what else is known of the place: `step 1,200 (epoch 3)`; as `in_words` of dse_monitor/runs/order.py. */
export function placeInWords(axis, at, epoch, step) {
  const more = [];
  if (axis !== 'epoch' && Number.isFinite(epoch)) more.push(position('epoch', epoch));
  if (Number.isFinite(step) && (axis === 'order' || (axis === 'epoch' && at !== epoch))) more.push(position('step', step));
  return position(axis, at) + (more.length ? ` (${more.join(', ')})` : '');
}

/** Local date and time of seconds since 1970. */
export function moment(seconds) {
  if (!Number.isFinite(seconds) || Math.abs(seconds) > 8.6e12) return '–';
  const two = (part) => String(part).padStart(2, '0');
  const t = new Date(seconds * 1000);
  return `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())} ${two(t.getHours())}:${two(t.getMinutes())}`;
}

/** How long ago, in the largest unit that fits. */
export function ago(seconds) {
  if (!Number.isFinite(seconds)) return 'at an unknown time';
  const spans = [[86400, 'd'], [3600, 'h'], [60, 'min']];
  const [size, unit] = spans.find(([length]) => seconds >= length) ?? [1, 's'];
  return `${Math.max(0, Math.floor(seconds / size))} ${unit} ago`;
}

export function bytes(size) {
  if (!Number.isFinite(size) || size <= 0) return '–';
  const power = Math.min(4, Math.floor(Math.log10(size) / 3));
  return `${(size / 1000 ** power).toFixed(power > 1 ? 1 : 0)} ${['B', 'kB', 'MB', 'GB', 'TB'][power]}`;
}

/** A button that copies a text and says so; selects the text where the clipboard is refused. */
export function copyButton(text, label = 'Copy') {
  const button = el('button.quiet', { text: label, title: `Copy: ${short(text, 200)}`, type: 'button' });
  button.addEventListener('click', async (event) => {
    event.stopPropagation();
    const done = await copy(text);
    button.textContent = done ? 'Copied' : 'Press Ctrl+C';
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el('textarea', { value: text, 'aria-hidden': 'true', style: { position: 'fixed', opacity: 0 } });
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

/** Hand a file to the browser's downloads. */
export function download(name, blob) {
  const link = el('a', { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
