// Whole-page messages: why there is nothing to rate now, and what the rater can do.

import { notice, showMessage } from "./view.js";


/**
 * Show one of the messages.
 * @param name which
 * @param run what the buttons do: {retry, leave, take, reload, signIn}
 * @param waiting votes that are not sent yet
 * @param said the server's own sentence
 */
export function tell(name, run = {}, waiting = 0, said = "") {
  const [symbol, title, text, actions = []] = MESSAGES[name](run, kept(waiting), said);
  showMessage(symbol, title, text, actions);
}

/** Show a notice: others (how many of their votes wait), forgetful, broken or rest. */
export function note(name, n) {
  notice(name, ...NOTES[name](n));
}

const NOTES = {
  others: (n) => {
    const votes = n === 1 ? "1 vote of another rater is" : `${n} votes of another rater are`;
    return ["lock", `${votes} waiting on this device until they sign in again.`];
  },
  forgetful: () => [
    "warn",
    "This browser keeps nothing: votes that are not saved yet are lost when you close this tab.",
  ],
  broken: () => ["warn", "An image could not be loaded. Its page was skipped and reported."],
  rest: () => ["pause", "You have been rating for half an hour. Time for a short break?"],
};

const MESSAGES = {
  unreachable: (run) => [
    "offline",
    "The server cannot be reached",
    "Retrying in a few seconds.",
    [{ label: "Try now", run: run.retry }],
  ],
  otherTab: (run) => [
    "tabs",
    "Open in another tab",
    "You are already rating in another tab of this browser. Use one tab at a time.",
    [{ label: "Rate here", run: run.take }],
  ],
  noTask: () => ["done", "Nothing to rate now", "No task is open at the moment."],
  almost: () => ["sync", "Almost done", "Saving your last votes."],
  starved: () => [
    "pause",
    "Nothing to rate at the moment",
    "Other raters have the remaining pages. This page keeps checking.",
  ],
  finished: (run) => [
    "done",
    "All done. Thank you!",
    "You have rated everything, and all of it is saved.",
    [{ label: "Check for more", run: run.reload }],
  ],
  closed: (run, waiting) => [
    "done",
    "Task closed",
    `This task takes no more votes. Yours are kept. Thank you!${waiting}`,
    [{ label: "Check again", run: run.reload }],
  ],
  paused: () => [
    "pause",
    "Task paused",
    "The organiser has paused this task. Your votes are kept, and this page resumes by itself.",
  ],
  offline: (run, waiting) => [
    "offline",
    "You are offline",
    `You have rated every page that was loaded. More will load when you are back online.${waiting}`,
    [{ label: "Try now", run: run.retry }],
  ],
  slow: (run, waiting) => [
    "sync",
    "Your connection is slow",
    `Nothing has arrived for a while. This page keeps trying.${waiting}`,
    [{ label: "Try now", run: run.retry }],
  ],
  unavailable: (run, waiting, said) => [
    "warn",
    "No pages at the moment",
    `${said} This page keeps trying.${waiting}`,
    [{ label: "Try now", run: run.retry }],
  ],
  refused: (run, waiting, said) => [
    "warn",
    "The server refused the request",
    `${said}${waiting}`,
    [{ label: "Try again", run: run.retry }],
  ],
  signedOut: (run, waiting) => [
    "lock",
    "You are signed out",
    `Sign in again to continue.${waiting}`,
    [{ label: "Sign in", run: () => run.leave() }],
  ],
  other_rater: (run, waiting) => [
    "lock",
    "Another rater has signed in here",
    `None of your votes are sent in their name.${waiting} To continue, sign in; this signs them out here.`,
    [
      { label: "Sign in", run: run.signIn },
      { label: "Continue as them", run: () => run.leave() },
    ],
  ],
};

function kept(n) {
  if (n === 0) return "";
  return n === 1 ? " 1 vote is waiting on this device." : ` ${n} votes are waiting on this device.`;
}
