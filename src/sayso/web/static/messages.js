// Whole-page messages: why there is nothing to rate now, and what the rater can do.

import { showMessage } from "./view.js";

const SIGN_IN = "/"; // shows the sign-in page to who is signed out

/**
 * Show one of the messages.
 * @param name which
 * @param run what the buttons do: {retry, leave, take}
 * @param waiting answers that are not sent yet
 */
export function tell(name, run = {}, waiting = 0) {
  const [symbol, title, text, actions = []] = MESSAGES[name](run, kept(waiting));
  showMessage(symbol, title, text, actions);
}

const MESSAGES = {
  unreachable: (run) => [
    "offline",
    "The server cannot be reached",
    "Trying again in a few seconds.",
    [{ label: "Try now", run: run.retry }],
  ],
  otherTab: (run) => [
    "tabs",
    "Open in another tab",
    "You are rating in another tab of this browser. One tab at a time keeps your order.",
    [{ label: "Rate here instead", run: run.take }],
  ],
  noTask: () => ["done", "Nothing to rate now", "There is no open task for you."],
  almost: () => ["sync", "Almost done", "Your last answers are being saved."],
  starved: () => [
    "cup",
    "Nothing free at the moment",
    "Others are working on what is left. This page looks again by itself.",
  ],
  finished: (run) => [
    "done",
    "All done, thank you",
    "Every page for you is answered and saved.",
    [{ label: "Look for more", run: run.reload }],
  ],
  closed: (run, keptAnswers) => [
    "done",
    "Closed",
    `This task takes no more answers; those you gave are kept. Thank you for your work.${keptAnswers}`,
    [{ label: "Look again", run: run.reload }],
  ],
  paused: () => [
    "pause",
    "Paused",
    "The organiser has paused this task. It goes on here by itself; your answers are kept.",
  ],
  offline: (run, keptAnswers) => [
    "offline",
    "You are offline",
    `All pages loaded so far are answered. More come when the connection is back.${keptAnswers}`,
    [{ label: "Try now", run: run.retry }],
  ],
  unavailable: (run, keptAnswers) => [
    "warn",
    "The server is busy",
    `It cannot hand out pages at the moment; this page keeps trying.${keptAnswers}`,
    [{ label: "Try now", run: run.retry }],
  ],
  signedOut: (run, keptAnswers) => [
    "lock",
    "You are signed out",
    `Sign in again to go on.${keptAnswers}`,
    [{ label: "Sign in", run: () => run.leave(SIGN_IN) }],
  ],
};

function kept(n) {
  if (n === 0) return "";
  return n === 1 ? " 1 answer waits on this device." : ` ${n} answers wait on this device.`;
}
