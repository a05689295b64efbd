/** Entry point of the DSE tab: TensorBoard's frame imports this module and calls `render`. */

export async function render() {
  const style = (href) => {
    const link = document.createElement('link');
    link.rel = 'stylesheet';
    link.href = href;
    return new Promise((done) => {
      link.onload = link.onerror = done;
      document.head.append(link);
    });
  };
  await Promise.all([style('static/vendor/uPlot.min.css'), style('static/style.css')]);
  try {
    const { start } = await import('./static/app.js');
    await start(document.body);
  } catch (error) {
    const text = document.createElement('p');
    text.className = 'broken';
    text.textContent = `The DSE tab could not start: ${error.message}. If a file is missing, install dse-monitor again.`;
    document.body.replaceChildren(text);
    document.body.dataset.ready = 'error';
    throw error;
  }
}
