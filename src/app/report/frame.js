// What the pages of reports have in common: their data, what is said when they can't be drawn, the
// parts about command and machine, paper.
'use strict';
const Frame = (() => {
  const {make, table, section, draw_charts} = Elements;
  const SHEET_WIDTH = 690;  // of A4 between its margins, in CSS pixels

  function named_values(caption, values) {
    return table(caption, [
      {name: '', of: (one) => one.name},
      {name: '', of: (one) => one.value},
    ], values);
  }
  // As a shell would take it.
  function quoted(word) {
    return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replace(/'/g, `'\\''`)}'`;
  }

  // figures: [[name, value]].
  function cards(figures) {
    return make('dl', {class: 'cards'}, ...figures.map(([name, value]) =>
        make('div', {}, make('dt', {}, name), make('dd', {}, value))));
  }
  function fallbacks(notices) {
    return section('Fallbacks and notes', notices.length === 0 ?
        make('p', {}, 'None: everything is as asked for.') :
        table('What was done another way than the fastest', [
          {name: 'subject', of: (notice) => notice.subject},
          {name: 'what was said', of: (notice) => notice.text},
        ], notices));
  }
  function command(report, title, ...children) {
    return section(title, make('pre', {}, report.command.map(quoted).join(' ')), ...children);
  }
  function machine(report) {
    return section('The machine', named_values('Environment', report.environment));
  }

  // The page's parts, from now on those that are seen.
  function show(parts) {
    document.getElementById('main').replaceChildren(...parts);
    draw_charts();
    // For tests: how many charts there are.
    document.documentElement.dataset.charts = String(Charts.count());
  }

  // Charts keep the size at which they were drawn: on a sheet they are shown smaller.
  function fit_paper() {
    const charts = () => document.querySelectorAll('.chart');
    addEventListener('beforeprint', () => {
      const zoom = Math.min(1, SHEET_WIDTH / document.getElementById('main').clientWidth);
      for (const chart of charts()) {
        chart.style.width = `${chart.clientWidth}px`;
        chart.style.zoom = zoom;
      }
    });
    addEventListener('afterprint', () => {
      for (const chart of charts()) chart.style.width = chart.style.zoom = '';
    });
  }

  // Hands the page's data to `draw`, which returns its title.
  function start(draw) {
    try {
      const report = JSON.parse(document.getElementById('data').textContent);
      document.getElementById('schema').textContent = report.schema;
      document.title = `Offstage report: ${draw(report)}`;
      fit_paper();
    } catch (error) {
      const problem = document.getElementById('problem');
      problem.textContent =
          `This report could not be drawn: ${error.message}. Its data is in script#data.`;
      problem.hidden = false;
      document.documentElement.dataset.problem = error.message;
      throw error;
    }
  }

  return {named_values, cards, fallbacks, command, machine, show, start};
})();
