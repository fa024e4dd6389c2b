"use strict";

// Without this script every clip has a player of its own; with it, one is heard at a time, and buttons
// change which, at the same position.
for (const player of document.querySelectorAll(".player")) {
  const clips = [...player.querySelectorAll(".clip")];
  const audios = clips.map((clip) => clip.querySelector("audio"));
  const buttons = clips.map((clip) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = clip.querySelector(".name").textContent;
    return button;
  });
  let current = 0;

  const show = () => {
    clips.forEach((clip, index) => { clip.hidden = index !== current; });
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === current)));
  };
  const change = (next) => {
    const before = audios[current];
    const playing = !before.paused && !before.ended;
    before.pause();
    audios[next].currentTime = before.ended ? 0 : before.currentTime;
    audios[next].volume = before.volume;
    current = next;
    show();
    if (playing) audios[next].play().catch(() => {});
  };

  buttons.forEach((button, index) => button.addEventListener("click", () => {
    if (index !== current) change(index);
  }));
  const choice = document.createElement("div");
  choice.className = "switch";
  choice.setAttribute("role", "group");
  choice.setAttribute("aria-label", "What is heard");
  choice.append(...buttons);
  player.querySelector("figcaption").after(choice);
  show();
}

// What a test, or a person who wonders, can read: whether each player's sound was understood.
const audios = [...document.querySelectorAll("audio")];
for (const audio of audios) {
  const ready = () => { if (Number.isFinite(audio.duration)) audio.dataset.ready = audio.duration; };
  audio.addEventListener("loadedmetadata", ready);
  audio.addEventListener("durationchange", ready);
  audio.addEventListener("error", () => {
    const note = document.createElement("p");
    note.className = "failed";
    note.textContent = "This browser cannot play Opus in Ogg.";
    audio.after(note);
  });
  audio.addEventListener("play", () => {
    for (const other of audios) if (other !== audio) other.pause();
  });
  ready();
}
addEventListener("load", () => {
  for (const image of document.images) image.dataset.ready = image.naturalWidth;
});
