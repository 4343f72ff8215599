// Asks again and again: never twice at once, and not at all while nobody looks.

/** Call `ask` now, and a period after each time it ended. */
export const pollForever = (ask, periodMs) => {
  let timer, isAsking = false;
  const turn = async () => {
    if (isAsking || document.hidden) return;
    isAsking = true;
    try {
      await ask();
    } finally {
      isAsking = false;
      if (!document.hidden) timer = setTimeout(turn, periodMs);
    }
  };
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    turn();
  });
  turn();
};
