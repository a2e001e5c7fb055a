// Whole-page messages: why there is nothing to rate now, and what the rater can do.

import { notice, showMessage } from "./view.js";


/**
 * Show one of the messages.
 * @param name which
 * @param run what the buttons do: {retry, leave, take, reload, signIn}
 * @param waiting answers that are not sent yet
 * @param said the server's own sentence
 */
export function tell(name, run = {}, waiting = 0, said = "") {
  const [symbol, title, text, actions = []] = MESSAGES[name](run, kept(waiting), said);
  showMessage(symbol, title, text, actions);
}

/** Show a notice: others (how many of their answers wait), forgetful or broken. */
export function note(name, n) {
  notice(name, ...NOTES[name](n));
}

const NOTES = {
  others: (n) => {
    const answers = n === 1 ? "1 answer of somebody else waits" : `${n} answers of somebody else wait`;
    return ["lock", `${answers} on this device for their sign-in.`];
  },
  forgetful: () => [
    "warn",
    "This browser keeps nothing: an answer that is not saved yet is lost when you close this tab.",
  ],
  broken: () => ["warn", "A picture could not be loaded; its page was passed over and reported."],
};

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
    "pause",
    "Nothing free at the moment",
    "Others are working on the rest. This page asks again by itself.",
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
  slow: (run, keptAnswers) => [
    "sync",
    "Your connection is slow",
    `Nothing has come for a while; this page keeps trying.${keptAnswers}`,
    [{ label: "Try now", run: run.retry }],
  ],
  unavailable: (run, keptAnswers, said) => [
    "warn",
    "No pages at the moment",
    `${said} This page keeps trying.${keptAnswers}`,
    [{ label: "Try now", run: run.retry }],
  ],
  refused: (run, keptAnswers, said) => [
    "warn",
    "The server refuses this page",
    `${said}${keptAnswers}`,
    [{ label: "Try again", run: run.retry }],
  ],
  signedOut: (run, keptAnswers) => [
    "lock",
    "You are signed out",
    `Sign in again to go on.${keptAnswers}`,
    [{ label: "Sign in", run: () => run.leave() }],
  ],
  other_rater: (run, keptAnswers) => [
    "lock",
    "Somebody else has signed in here",
    `No answer of yours goes out in their name.${keptAnswers} To go on, sign in; it signs them out here.`,
    [
      { label: "Sign in", run: run.signIn },
      { label: "Go on as them", run: () => run.leave() },
    ],
  ],
};

function kept(n) {
  if (n === 0) return "";
  return n === 1 ? " 1 answer waits on this device." : ` ${n} answers wait on this device.`;
}
