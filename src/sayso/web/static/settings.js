// Appearance and break reminder, kept in this browser.

const THEME = "sayso.theme";
const BREAK = "sayso.break";
const MINUTES = 30;

export function breakMinutes() {
  return Number(kept(BREAK) ?? MINUTES);
}

/** Join the settings in the help with the page. */
export function bindSettings(breakTimer) {
  const theme = document.getElementById("set-theme");
  const pause = document.getElementById("set-break");
  theme.value = kept(THEME) ?? "auto";
  pause.value = String(breakMinutes());
  theme.onchange = () => {
    keep(THEME, theme.value);
    document.documentElement.dataset.theme = theme.value;
  };
  pause.onchange = () => {
    keep(BREAK, pause.value);
    breakTimer.minutes = Number(pause.value);
  };
}

function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // the choice then holds until the page is closed
  }
}
