// Appearance, kept in this browser.

const THEME = "sayso.theme";

/** Join the settings in the help with the page. */
export function bindSettings() {
  const theme = document.getElementById("set-theme");
  theme.value = kept(THEME) ?? "auto";
  theme.onchange = () => {
    keep(THEME, theme.value);
    document.documentElement.dataset.theme = theme.value;
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
