// The page's own script: dresses Gradio's fields (marks, notes, reset, browse), finds them, opens dialogs. Gradio moves the data.
(() => {
  const K = window.kohya = { facts: {}, words: {}, state: {}, bridge: {} };
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const tag = (name, className, text = '') => Object.assign(document.createElement(name), { className, textContent: text });
  const word = (text) => K.words[text] ?? text;
  const waiting = {};
  // ---- talking to Python: one channel per tab, handed over by its gr.HTML
  K.join = (tab, trigger, server) => { K.bridge[tab] = { send: (data) => trigger('click', data), server }; };
  K.later = (tab) => { // half a second after the last change, and never while a key is still down
    clearTimeout(waiting[tab]);
    waiting[tab] = setTimeout(() => $(`#${tab}-refresh`)?.click(), 500);
  };
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
  // ---- fields: notes under them, mark and reset beside the label, browse button
  const parts = (element) => { const cut = element.id.indexOf('-'); return [element.id.slice(0, cut), element.id.slice(cut + 1)]; };
  const dress = (element) => {
    const [tab, key] = parts(element);
    const fact = K.facts[tab]?.[key];
    if (!fact || element.dataset.k) return;
    element.dataset.k = key;
    const label = $('[data-testid=block-info], .label-text', element);
    if (label) label.title = fact.tip;
    const input = $('input, textarea', element);
    const note = Object.assign(tag('div', 'k-note'), { id: `${element.id}-note` });
    input?.setAttribute('aria-describedby', note.id);
    const reset = Object.assign(tag('button', 'k-reset', fact.default), { type: 'button', title: word('Set back to the default') });
    reset.setAttribute('aria-label', `${fact.label}: ${reset.title}`);
    reset.dataset.reset = key;
    element.append(reset, note);
    if (fact.kind) {
      const browse = Object.assign(tag('button', 'k-browse', word('Browse')), { type: 'button' });
      browse.setAttribute('aria-label', `${word('Browse')}: ${fact.label}`);
      browse.dataset.browse = key;
      const list = Object.assign(tag('datalist', ''), { id: `${element.id}-list` });
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
    element.dataset.say = said ? said.say : '';
    $('input, textarea', element)?.setAttribute('aria-invalid', said?.say === 'error');
    note.textContent = said ? said.text : '';
    if (said?.set) {
      const fix = tag('button', 'k-link', said.set.label);
      fix.dataset.set = JSON.stringify(said.set.values);
      note.append(' ', fix);
    }
  };
  const paint = (tab) => {
    const { changed = {}, off = {}, notes = {}, keys = [] } = K.state[tab] ?? {};
    all(`[id^="${tab}-"].k-field[data-k]`).forEach((element) => paintField(tab, element, element.dataset.k));
    const facts = Object.fromEntries(Object.entries(K.facts[tab] ?? {}).filter(([key]) => key[0] !== '@'));
    const groups = {}, tabs = {};
    for (const [key, fact] of Object.entries(facts)) {
      const group = fact.group && (groups[fact.group] ??= { all: 0, changed: 0, off: 0 });
      if (group) { group.all += !(key in off); group.off += key in off; group.changed += key in changed; }
      for (const id of fact.tabs) {
        tabs[id] ??= { bad: 0, changed: 0, basic: +(K.facts[tab]['@pages'].keep.includes(id)) };
        tabs[id].basic += fact.basic;
        tabs[id].bad += notes[key]?.say === 'error';
        tabs[id].changed += key in changed;
      }
    }
    for (const [id, count] of Object.entries(groups)) {
      const group = document.getElementById(id);
      if (!group) continue;
      const header = $('.label-wrap', group);
      if (header) header.dataset.count = count.changed ? `${count.changed} ${word('changed')}` : `${count.all} ${word(count.all === 1 ? 'field' : 'fields')}`;
      group.toggleAttribute('data-changed', count.changed > 0);
      group.dataset.more = count.off ? word('{n} more appear with other choices').replace('{n}', count.off) : '';
      group.toggleAttribute('data-none', count.all === 0);
    }
    for (const [id, count] of Object.entries(tabs)) {
      const button = document.getElementById(`${id}-button`);
      if (button) Object.assign(button.dataset, { bad: count.bad || '', changed: count.changed || '', basic: count.basic });
    }
    const labels = all(`#${tab}-view label`);
    if (labels.length > 2) { labels[1].dataset.n = Object.keys(facts).length; labels[2].dataset.n = Object.keys(changed).length; }
  };
  new MutationObserver(() => { // closed tabs and accordions enter the DOM when they are opened
    all('.k-form:not([data-view])').forEach((form) => { const tab = form.id.replace('-form', ''); K.view(tab, 'basic'); K.later(tab); });
    const fresh = all('.k-field:not([data-k]), .k-group:not([data-k])');
    if (!fresh.length) return;
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
    const form = await found(`#${tab}-form`);
    if ((form.dataset.view !== 'all' && !(fact.basic && form.dataset.view === 'basic'))) all(`#${tab}-view input`)[1]?.click();
    for (const id of fact.tabs) (await found(`#${id}-button`))?.click();
    if (fact.group) await unfold(await found(`#${fact.group}`));
    const element = await found(`#${tab}-${key}`);
    element?.scrollIntoView({ block: 'center' });
    $('input, textarea', element)?.focus();
  };
  const search = (box) => {
    const tab = box.id.replace('-search', '');
    const query = $('input, textarea', box).value.trim().toLowerCase().replace(/^--/, '');
    $('.k-results')?.remove();
    if (!query) return;
    const list = tag('div', 'k-results');
    const score = ([key, fact]) => { const name = fact.label.toLowerCase(); return name === query || key === query ? 0 : name.startsWith(query) || key.startsWith(query) ? 1 : name.includes(query) || key.includes(query.replace(/ /g, '_')) ? 2 : fact.tip.toLowerCase().includes(query) ? 3 : 9; };
    const hits = Object.entries(K.facts[tab]).filter(([key]) => key[0] !== '@').map((entry) => [score(entry), entry]).filter(([points]) => points < 9).sort((a, b) => a[0] - b[0]).slice(0, 10);
    for (const [, [key, fact]] of hits) {
      const row = tag('button', 'k-result', fact.label);
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
    sheet.innerHTML = '<header><h2></h2><button class="k-close" data-close>×</button></header><div class="k-body"></div>';
    $('h2', sheet).textContent = title;
    $('.k-close', sheet).setAttribute('aria-label', word('Close'));
    $('.k-body', sheet).innerHTML = html; // made by our own Python, which escapes every value
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
  const complete = (element, value) => { // paths while typing, from the server, a quarter of a second after the last key
    clearTimeout(waiting.path);
    waiting.path = setTimeout(async () => {
      const [tab, key] = parts(element);
      const names = await K.bridge[tab].server.complete({ path: value, kind: K.facts[tab][key].kind });
      $('datalist', element).replaceChildren(...names.map((name) => new Option(name)));
    }, 250);
  };
  const readFile = (tab) => {
    const input = Object.assign(document.createElement('input'), { type: 'file', accept: '.json,.toml' });
    input.onchange = async () => { sheet.close(); K.bridge[tab].send({ do: 'open_text', name: input.files[0].name, text: await input.files[0].text() }); };
    input.click();
  };
  const copy = async (text, button, part) => { // without https there is no clipboard: select the text instead
    if (navigator.clipboard) { await navigator.clipboard.writeText(text); button.textContent = word('Copied'); } else getSelection().selectAllChildren(part);
  };
  const clicks = {
    go: (b) => { $('.k-results')?.remove(); if (sheet.open) sheet.close(); K.go(b.dataset.tab, b.dataset.go); },
    close: () => sheet.close(),
    reset: (b) => { const [tab] = parts(b.closest('.k-field')); K.bridge[tab].send({ do: 'reset', key: b.dataset.reset }); },
    set: (b) => { const tab = b.dataset.tab ?? parts(b.closest('.k-field'))[0]; K.bridge[tab].send({ do: 'set', values: JSON.parse(b.dataset.set) }); },
    browse: (b) => K.browse(b.dataset.tab ?? parts(b.closest('.k-field'))[0], b.dataset.browse),
    open: (b) => K.browse(sheet.dataset.tab, sheet.dataset.key, b.dataset.open),
    pick: (b) => { sheet.close(); K.bridge[sheet.dataset.tab].send({ do: 'pick', key: sheet.dataset.key, file: b.dataset.pick || $('[name=name]', sheet)?.value, folder: b.dataset.folder ?? '' }); },
    upload: () => readFile(sheet.dataset.tab),
    copy: (b) => copy(all(b.dataset.copy).map((part) => part.textContent).join('\n').split('\n').slice(-(b.dataset.lines ?? 1e6)).join('\n').trim(), b, $(b.dataset.copy)),
    theme: () => { const dark = document.body.classList.toggle('dark'); localStorage.setItem('kohya-theme', dark ? 'dark' : 'light'); },
    top: (b) => K.top(b.dataset.top),
  };
  document.addEventListener('click', (event) => {
    const hit = Object.keys(clicks).map((name) => [name, event.target.closest?.(`[data-${name}]`)]).find(([, button]) => button);
    if (hit) { event.preventDefault(); clicks[hit[0]](hit[1]); } else if (!event.target.closest?.('.k-search')) $('.k-results')?.remove();
    if (event.target.closest?.('.k-start') && window.Notification?.permission === 'default') Notification.requestPermission();
  });
  document.addEventListener('input', (event) => {
    const box = event.target.closest?.('.k-search');
    if (box) search(box);
    const path = event.target.closest?.('.k-path');
    if (path?.dataset.k && /[/\\]/.test(event.target.value)) complete(path, event.target.value);
  });
  document.addEventListener('keydown', (event) => {
    const box = event.key === 'Enter' && event.target.closest?.('.k-search');
    if (box) { event.preventDefault(); $('.k-result[data-go]', box)?.click(); }
    if (event.key === 'Escape') $('.k-results')?.remove();
    const tab = all('.k-tab').find((element) => element.offsetParent)?.id.replace('-tab', '');
    if (!(event.ctrlKey || event.metaKey) || !tab) return;
    if (event.key === 's') { event.preventDefault(); $(`#${tab}-save`)?.click(); }
    if (event.key === 'Enter') { event.preventDefault(); $(`#${tab}-start`)?.click(); }
  });
  document.addEventListener('DOMContentLoaded', () => {
    const theme = localStorage.getItem('kohya-theme') ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
    document.body.classList.toggle('dark', theme === 'dark');
  });
  // ---- progress in the tab's title, the badge on Jobs, a notification at the end
  K.progress = (value) => {
    const status = new DOMParser().parseFromString(value ?? '', 'text/html').querySelector('[data-title]');
    if (!status) return;
    document.title = status.dataset.title;
    const button = $('#top-jobs-button');
    if (button) button.dataset.badge = status.dataset.running === '0' ? '' : status.dataset.running;
    if (K.ended && status.dataset.ended && K.ended !== status.dataset.ended && window.Notification?.permission === 'granted') new Notification(status.dataset.said);
    K.ended = status.dataset.ended || 'none';
  };
  K.follow = () => { const log = $('#k-log'); if (log && $('#jobs-follow input')?.checked) log.scrollTop = log.scrollHeight; };
})();
