// The report of runs: its parts in order, for the run that is chosen.
'use strict';
(() => {
  const {format} = Charts;
  const {make, table} = Elements;
  const {percent, sum} = TimeSections;

  function cards(run) {
    const hits = sum(run.tokens.ram_hits), reads = sum(run.tokens.drive_reads);
    const bound = run.ceilings.tok_s;
    return Frame.cards([
      ['speed', `${format(run.tok_s)} tokens/s`],
      ['prompt to first token', `${format(run.ttft_ms)} ms`],
      [`${run.unit}, median`, `${format(run.itl_ms.p50)} ms`],
      [`${run.unit}, 99 %`, `${format(run.itl_ms.p99)} ms`],
      ['slowest', `${format(run.itl_ms.max)} ms`],
      ...(hits + reads === 0 ? [] : [['experts from RAM', percent(hits / (hits + reads))]]),
      ...(run.unit === 'token' && bound > 0 ?
          [['of what RAM allows', percent(run.tok_s / bound)]] : []),
    ]);
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
    parts.push(Frame.fallbacks(run.fallbacks),
               Frame.command(report, 'The run', Frame.named_values('Settings', run.facts)),
               Frame.machine(report));
    Frame.show(parts);
  }

  Frame.start((report) => {
    show(report, 0);
    return report.runs[0].model.name;
  });
})();
