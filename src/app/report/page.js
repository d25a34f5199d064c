// The report: its parts in order, for the run that is chosen.
'use strict';
(() => {
  const {format} = Charts;
  const {make, table, section, draw_charts} = Elements;
  const {percent, sum} = TimeSections;
  const SHEET_WIDTH = 690;  // of A4 between its margins, in CSS pixels

  function named_values(caption, values) {
    return table(caption, [
      {name: '', of: (one) => one.name},
      {name: '', of: (one) => one.value},
    ], values);
  }

  function cards(run) {
    const hits = sum(run.tokens.ram_hits), reads = sum(run.tokens.drive_reads);
    const bound = run.ceilings.tok_s;
    const figures = [
      ['speed', `${format(run.tok_s)} tokens/s`],
      ['prompt to first token', `${format(run.ttft_ms)} ms`],
      [`${run.unit}, median`, `${format(run.itl_ms.p50)} ms`],
      [`${run.unit}, 99 %`, `${format(run.itl_ms.p99)} ms`],
      ['slowest', `${format(run.itl_ms.max)} ms`],
      ...(hits + reads === 0 ? [] : [['experts from RAM', percent(hits / (hits + reads))]]),
      ...(run.unit === 'token' && bound > 0 ?
          [['of what RAM allows', percent(run.tok_s / bound)]] : []),
    ];
    return make('dl', {class: 'cards'}, ...figures.map(([name, value]) =>
        make('div', {}, make('dt', {}, name), make('dd', {}, value))));
  }

  function surroundings(run, report) {
    const fallbacks = run.fallbacks.length === 0 ?
        make('p', {}, 'None: everything is as asked for.') :
        table('What was done another way than the fastest', [
          {name: 'subject', of: (notice) => notice.subject},
          {name: 'what was said', of: (notice) => notice.text},
        ], run.fallbacks);
    return [
      section('Fallbacks and notes', fallbacks),
      section('The run', make('pre', {}, report.command.map(quoted).join(' ')),
          named_values('Settings', run.facts)),
      section('The machine', named_values('Environment', report.environment)),
    ];
  }
  // As a shell would take it.
  function quoted(word) {
    return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replace(/'/g, `'\\''`)}'`;
  }

  function comparison(report) {
    const rate = (run) => {
      const hits = sum(run.tokens.ram_hits), calls = hits + sum(run.tokens.drive_reads);
      return calls === 0 ? '–' : percent(hits / calls);
    };
    return table('All runs of this report', [
      {name: 'run', of: (run) => run.name},
      {name: 'tokens/s', number: true, of: (run) => format(run.tok_s)},
      {name: 'TTFT ms', number: true, of: (run) => format(run.ttft_ms)},
      {name: 'p50 ms', number: true, of: (run) => format(run.itl_ms.p50)},
      {name: 'p99 ms', number: true, of: (run) => format(run.itl_ms.p99)},
      {name: 'max ms', number: true, of: (run) => format(run.itl_ms.max)},
      {name: 'from RAM', number: true, of: rate},
    ], report.runs);
  }

  function header(report, chosen) {
    const children = [make('h1', {}, `Offstage report: ${report.runs[chosen].model.name}`),
                      make('p', {class: 'quiet'}, `${report.program}, ${report.made}`)];
    if (report.runs.length > 1) {
      const select = make('select', {id: 'run'}, ...report.runs.map((run, i) =>
          make('option', {value: String(i)}, run.name)));
      select.value = String(chosen);
      select.addEventListener('change', () => show(report, Number(select.value)));
      children.push(comparison(report), make('label', {for: 'run'}, 'Shown below: '), select);
    } else {
      children.push(make('p', {}, report.runs[0].name));
    }
    document.getElementById('header').replaceChildren(...children);
  }

  function show(report, chosen) {
    const run = report.runs[chosen];
    const zoom = new Charts.SharedZoom(run.tokens.wall_ns.length);
    Charts.destroy_all();
    header(report, chosen);
    const parts = [cards(run)];
    if (run.tokens.wall_ns.length === 0) {
      parts.push(make('p', {class: 'problem'},
          `No ${run.unit} was computed: there is nothing to show.`));
    } else {
      parts.push(TimeSections.timeline(run, zoom), TimeSections.latency(run));
      if (run.unit === 'token') parts.push(TimeSections.spikes(run, zoom));
      parts.push(TierSections.layers(run), TierSections.bandwidth(run, zoom),
                 TierSections.sizes(run));
    }
    parts.push(...surroundings(run, report));
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

  try {
    const report = JSON.parse(document.getElementById('data').textContent);
    document.title = `Offstage report: ${report.runs[0].model.name}`;
    show(report, 0);
    fit_paper();
  } catch (error) {
    const problem = document.getElementById('problem');
    problem.textContent =
        `This report could not be drawn: ${error.message}. Its data is in script#data.`;
    problem.hidden = false;
    document.documentElement.dataset.problem = error.message;
    throw error;
  }
})();
