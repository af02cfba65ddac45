// Of axes below a video: a click on a span, or anywhere else, moves the video there; a line shows where it is.
() => {
    const video = axis => axis.closest("figure").querySelector("video");
    const seek = event => {
        const axis = event.target.closest(".tpo-axis");
        if (!axis) return;
        const span = event.target.closest("[data-seek]");
        const shown = axis.getBoundingClientRect();
        const x = (event.clientX - shown.left) / shown.width * axis.viewBox.baseVal.width;
        const share = Math.min(1, Math.max(0, (x - axis.dataset.left) / axis.dataset.room));
        video(axis).currentTime = span ? Number(span.dataset.seek) : share * axis.dataset.duration;
    };
    document.addEventListener("click", seek);
    document.addEventListener("keydown", event => {
        if (event.key === "Enter" && event.target.closest && event.target.closest("[data-seek]")) seek(event);
    });
    const move = event => {
        const figure = event.target.closest && event.target.closest("figure");
        for (const axis of figure ? figure.querySelectorAll(".tpo-axis") : []) {
            const x = Number(axis.dataset.left) + event.target.currentTime / axis.dataset.duration * axis.dataset.room;
            for (const end of ["x1", "x2"]) axis.querySelector(".tpo-now").setAttribute(end, x);
        }
    };
    for (const name of ["timeupdate", "seeking"]) document.addEventListener(name, move, true);  // they do not bubble
}
