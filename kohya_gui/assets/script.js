// The page's own script: dresses Gradio's fields (marks, notes, browse), finds them, opens dialogs.
// Gradio moves the data.
(() => {
  const K = window.kohya = { facts: {}, words: {}, state: {}, bridge: {} };
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const tag = (name, className, text = '', more = {}) =>
    Object.assign(document.createElement(name), { className, textContent: text, ...more });
  const word = (text) => K.words[text] ?? text;
  const waiting = {};
  const after = (name, time, work) => { clearTimeout(waiting[name]); waiting[name] = setTimeout(work, time); };
  // ---- talking to Python: one channel per tab, handed over by its gr.HTML
  K.join = (tab, trigger, server) => { K.bridge[tab] = { send: (data) => trigger('click', data), server }; };
  K.later = (tab) => after(tab, 500, () => $(`#${tab}-refresh`)?.click()); // half a second after the last change
  K.receive = (tab, state) => {
    if (!state) return;
    if (state.fields) { K.state[tab] = state.fields; paint(tab); }
    if (state.sheet) K.sheet(state.sheet.title, state.sheet.html);
    if (state.close) sheet.close();
    if (state.top) K.top(state.top);
    if (state.go) K.go(tab, state.go);
    if (state.send) K.bridge[state.send.tab].send(state.send.data);
    if (state.browse) K.browse(tab, state.browse, '');
    if (state.later) K.later(tab);
  };
  // ---- fields: notes under them, mark and way back beside the label, browse button
  const parts = (element) => element.id.split(/-(.*)/s);
  const tabOf = (element) => element.closest('[data-tab]')?.dataset.tab ?? parts(element.closest('.k-field'))[0];
  const dress = (element) => {
    const [tab, key] = parts(element);
    const fact = K.facts[tab]?.[key];
    if (!fact || element.dataset.k) return;
    element.dataset.k = key;
    const label = $('[data-testid=block-info], .label-text', element);
    if (label) { label.title = fact.tip; label.dataset.unit = fact.unit; }
    const input = $('input, textarea', element);
    input?.setAttribute('aria-describedby', `${element.id}-note`);
    const reset = tag('button', 'k-reset', '', { type: 'button', title: word('Undo this change') });
    reset.setAttribute('aria-label', `${fact.label}: ${reset.title}`);
    reset.dataset.reset = key;
    element.append(reset, tag('div', 'k-note', '', { id: `${element.id}-note` }));
    if (fact.kind) {
      const browse = tag('button', 'k-browse', word('Browse'), { type: 'button' });
      browse.setAttribute('aria-label', `${word('Browse')}: ${fact.label}`);
      browse.dataset.browse = key;
      const list = tag('datalist', '', '', { id: `${element.id}-list` });
      list.append(...fact.list.map((value) => new Option(value)));
      input?.setAttribute('list', list.id);
      element.append(list);
      element.insertBefore(browse, reset);
    }
    paintField(tab, element, key);
  };
  const paintField = (tab, element, key) => {
    const { changed = {}, off = {}, notes = {} } = K.state[tab] ?? {};
    const note = $('.k-note', element), said = notes[key];
    element.toggleAttribute('data-changed', key in changed);
    element.toggleAttribute('data-off', key in off);
    element.dataset.say = said?.say ?? '';
    $('.k-reset', element).textContent = changed[key] ?? '';
    $('input, textarea', element)?.setAttribute('aria-invalid', said?.say === 'error');
    note.textContent = said?.text ?? '';
    if (!said?.set) return;
    const fix = tag('button', 'k-link', said.set.label);
    fix.dataset.set = JSON.stringify(said.set.values);
    note.append(' ', fix);
  };
  const paint = (tab) => { // the counts are Python's
    const { groups = {}, tabs = {}, views = [] } = K.state[tab] ?? {};
    all(`[id^="${tab}-"].k-field[data-k]`).forEach((element) => paintField(tab, element, element.dataset.k));
    const mark = (element, said) => { if (element) Object.assign(element.dataset, said); };
    for (const [id, said] of Object.entries(groups)) {
      mark(document.getElementById(id), said);
      mark($(`#${id} > .label-wrap`), { count: said.count });
    }
    for (const [id, said] of Object.entries(tabs)) mark(document.getElementById(`${id}-button`), said);
    all(`#${tab}-view label`).forEach((label, number) => mark(label, { n: views[number] ?? '' }));
  };
  new MutationObserver(() => { // closed tabs and accordions enter the DOM when they are opened
    for (const form of all('.k-form:not([data-view])')) {
      const [tab] = parts(form);
      K.view(tab, 'basic');
      K.later(tab);
    }
    const fresh = all('.k-field:not([data-k]), .k-group:not([data-k])');
    fresh.forEach((element) => element.matches('.k-field') ? dress(element) : element.setAttribute('data-k', ''));
    new Set(fresh.map((element) => parts(element)[0])).forEach(paint);
  }).observe(document.documentElement, { childList: true, subtree: true });
  // ---- finding a field and going there
  const pause = () => new Promise((next) => setTimeout(next, 50));
  const found = async (selector) => {
    for (let tries = 0; tries < 60 && !$(selector); tries++) await pause();
    return $(selector);
  };
  const unfold = async (group) => { // an accordion that is just being made may close again: look, and click once more
    for (let tries = 0; tries < 40 && !$('[data-testid=accordion-content]', group)?.offsetParent; tries++) {
      if (tries % 8 === 0) $('.label-wrap', group).click();
      await pause();
    }
  };
  K.top = (name) => $(`#top-${name}-button`)?.click();
  K.view = (tab, view) => { const form = $(`#${tab}-form`); if (form) form.dataset.view = String(view).toLowerCase(); };
  K.go = async (tab, key) => {
    const fact = K.facts[tab]?.[key];
    if (!fact) return;
    K.top(tab);
    const { view } = (await found(`#${tab}-form`)).dataset;
    if (view !== 'all' && !(fact.basic && view === 'basic')) all(`#${tab}-view input`)[1]?.click();
    for (const id of fact.tabs) (await found(`#${id}-button`))?.click();
    if (fact.group) await unfold(await found(`#${fact.group}`));
    const element = await found(`#${tab}-${key}`);
    element?.scrollIntoView({ block: 'center' });
    $('input, textarea', element)?.focus();
  };
  const search = (box) => {
    const [tab] = parts(box), query = $('input, textarea', box).value.trim().toLowerCase().replace(/^--/, '');
    $('.k-results')?.remove();
    if (!query) return;
    const points = (key, { label, tip }) => {
      const names = [label.toLowerCase(), key.toLowerCase(), key.toLowerCase().replaceAll('_', ' ')];
      if (names.includes(query)) return 0;
      if (names.some((name) => name.startsWith(query))) return 1;
      if (names.some((name) => name.includes(query))) return 2;
      return tip.toLowerCase().includes(query) ? 3 : 9;
    };
    const known = Object.entries(K.facts[tab]).filter(([, fact]) => fact.tip);
    const hits = known.map(([key, fact]) => [points(key, fact), key])
      .filter(([score]) => score < 9).sort((a, b) => a[0] - b[0]).slice(0, 10);
    const list = tag('div', 'k-results');
    for (const [, key] of hits) {
      const row = tag('button', 'k-result', K.facts[tab][key].label);
      row.append(tag('small', '', `--${key}`));
      Object.assign(row.dataset, { go: key, tab });
      list.append(row);
    }
    if (!hits.length) list.append(tag('div', 'k-result', word('No field has this name')));
    box.append(list);
  };
  // ---- one dialog for everything: browse, command, report
  const sheet = tag('dialog', 'k-sheet');
  K.sheet = (title, html) => {
    const head = tag('header', ''), close = tag('button', 'k-close', '×'), body = tag('div', 'k-body');
    close.setAttribute('aria-label', word('Close'));
    close.dataset.close = '';
    head.append(tag('h2', '', title), close);
    body.innerHTML = html; // made by our own Python, which escapes every value
    sheet.replaceChildren(head, body);
    if (!sheet.isConnected) document.body.append(sheet);
    if (!sheet.open) sheet.showModal();
  };
  K.browse = async (tab, key, path = null) => {
    const answer = await K.bridge[tab].server.browse({ key, path: path ?? ($(`#${tab}-${key} input`)?.value || '') });
    K.sheet(answer.title, answer.html);
    Object.assign(sheet.dataset, { tab, key });
  };
  K.act = (event, trigger) => { // a button (or row) inside a gr.HTML that says what to do
    const button = event.target.closest('[data-do]');
    if (!button || (event.target.closest('a') && !button.closest('a'))) return;
    if (!button.dataset.sure || confirm(button.dataset.sure)) trigger('click', { ...button.dataset });
  };
  const complete = (element, value) => after('path', 250, async () => { // paths while typing, from the server
    const [tab, key] = parts(element);
    const names = await K.bridge[tab].server.complete({ path: value, kind: K.facts[tab][key].kind });
    $('datalist', element).replaceChildren(...names.map((name) => new Option(name)));
  });
  const choose = (accept, multiple, take) => { // the browser's own file dialog
    const input = tag('input', '', '', { type: 'file', accept, multiple });
    input.onchange = () => take([...input.files]);
    input.click();
  };
  const upload = async (place, files) => { // one after the other; what was refused is said at the end
    const refused = [], tab = tabOf(place), folder = encodeURIComponent(place.dataset.drop);
    for (const file of files) {
      const address = `kohya/upload?folder=${folder}&name=${encodeURIComponent(file.name)}`;
      const answer = await fetch(address, { method: 'PUT', body: file }).catch((error) => error);
      const said = answer.ok ? (await answer.json()).refused : `${file.name}: ${answer.statusText ?? answer}`;
      if (said) refused.push(said);
    }
    K.later(tab);
    if (!refused.length) return;
    K.sheet(word('{n} added').replace('{n}', files.length - refused.length), '<ul></ul>');
    $('ul', sheet).append(...refused.map((text) => tag('li', '', text)));
  };
  const copy = async (text, button, part) => { // without https there is no clipboard: select the text instead
    if (!navigator.clipboard) return getSelection().selectAllChildren(part);
    await navigator.clipboard.writeText(text);
    button.textContent = word('Copied');
  };
  const send = (b, data) => K.bridge[tabOf(b)].send(data);
  const clicks = {
    go: (b) => { $('.k-results')?.remove(); sheet.close(); K.go(b.dataset.tab, b.dataset.go); },
    close: () => sheet.close(),
    reset: (b) => send(b, { do: 'reset', key: b.dataset.reset }),
    set: (b) => send(b, { do: 'set', values: JSON.parse(b.dataset.set) }),
    browse: (b) => K.browse(tabOf(b), b.dataset.browse),
    open: (b) => K.browse(sheet.dataset.tab, sheet.dataset.key, b.dataset.open),
    pick: (b) => {
      const file = b.dataset.pick || $('[name=name]', sheet)?.value;
      sheet.close();
      send(sheet, { do: 'pick', key: sheet.dataset.key, file, folder: b.dataset.folder ?? '' });
    },
    upload: () => choose('.json,.toml', false, async ([file]) => {
      sheet.close();
      send(sheet, { do: 'open_text', name: file.name, text: await file.text() });
    }),
    add: (b) => choose('image/*,.txt,.caption', true, (files) => upload(b.closest('[data-drop]'), files)),
    copy: (b) => {
      const lines = all(b.dataset.copy).map((part) => part.textContent).join('\n').trim().split('\n');
      copy(lines.slice(-(b.dataset.lines ?? 1e6)).join('\n'), b, $(b.dataset.copy));
    },
    theme: () => localStorage.setItem('kohya-theme', document.body.classList.toggle('dark') ? 'dark' : 'light'),
    top: (b) => K.top(b.dataset.top),
  };
  const on = (name, work) => document.addEventListener(name, (event) => work(event, (s) => event.target.closest?.(s)));
  on('click', (event, near) => {
    const name = Object.keys(clicks).find((each) => near(`[data-${each}]`));
    if (name) { event.preventDefault(); clicks[name](near(`[data-${name}]`)); }
    else if (!near('.k-search')) $('.k-results')?.remove();
    if (near('[id$=-start]') && window.Notification?.permission === 'default') Notification.requestPermission();
  });
  on('input', (event, near) => {
    if (near('.k-search')) search(near('.k-search'));
    if (near('.k-cut')) near('.k-compare').style.setProperty('--cut', `${event.target.value}%`);
    if (near('.k-path[data-k]') && /[/\\]/.test(event.target.value)) complete(near('.k-path'), event.target.value);
  });
  on('dragover', (event, near) => { if (near('[data-drop]')) event.preventDefault(); });
  on('drop', (event, near) => {
    const place = near('[data-drop]');
    if (!place || !event.dataTransfer.files.length) return;
    event.preventDefault();
    if (place.dataset.drop) upload(place, [...event.dataTransfer.files]);
  });
  on('keydown', (event, near) => {
    if (event.key === 'Enter' && near('.k-search')) {
      event.preventDefault();
      $('.k-search .k-result[data-go]')?.click();
    }
    if (event.key === 'Escape') $('.k-results')?.remove();
    const form = all('.k-form').find((element) => element.offsetParent);
    const button = { s: 'save', Enter: 'start' }[event.key];
    if (!(event.ctrlKey || event.metaKey) || !form || !button || sheet.open) return;
    event.preventDefault();
    $(`#${parts(form)[0]}-${button}`)?.click();
  });
  on('DOMContentLoaded', () => {
    const wanted = localStorage.getItem('kohya-theme');
    const system = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
    document.body.classList.toggle('dark', (wanted ?? system) === 'dark');
  });
  // ---- progress in the tab's title, the badge on Jobs, a notification at the end
  K.progress = (value) => {
    const status = $('[data-title]', new DOMParser().parseFromString(value ?? '', 'text/html'))?.dataset;
    if (!status) return;
    document.title = status.title;
    const button = $('#top-jobs-button');
    if (button) button.dataset.badge = status.running === '0' ? '' : status.running;
    const news = K.ended && status.ended && K.ended !== status.ended;
    if (news && window.Notification?.permission === 'granted') new Notification(status.said);
    K.ended = status.ended || 'none';
  };
  K.follow = () => { if ($('#jobs-follow input')?.checked) $('#k-log')?.scrollTo(0, 1e9); };
})();
