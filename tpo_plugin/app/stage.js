// A box that is drawn with the mouse over a picture or a video that is paused.
const CONTROLS = 56;  // pixels at the lower edge of a video
let start = null, dragged = false;
const stage = () => element.querySelector(".tpo-stage");
const medium = () => element.querySelector(".tpo-stage img, .tpo-stage video");
const place = event => {
    const shown = medium().getBoundingClientRect();
    const share = (value, low, length) => Math.min(1, Math.max(0, (value - low) / length));
    return [share(event.clientX, shown.left, shown.width), share(event.clientY, shown.top, shown.height)];
};
const corners = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
const show = box => {
    let drawn = element.querySelector(".tpo-drawn");
    if (!drawn) {
        drawn = document.createElement("div");
        drawn.className = "tpo-drawn";
        stage().append(drawn);
    }
    const names = ["left", "top", "width", "height"];
    [box[0], box[1], box[2] - box[0], box[3] - box[1]].forEach((value, i) => drawn.style[names[i]] = `${100 * value}%`);
};
element.addEventListener("pointerdown", event => {
    const shown = stage() && medium();
    if (!shown || !stage().contains(event.target) || event.button) return;
    if (shown.tagName === "VIDEO" && event.clientY > shown.getBoundingClientRect().bottom - CONTROLS) return;
    [start, dragged] = [place(event), false];
    event.preventDefault();
});
document.addEventListener("pointermove", event => {
    if (!start || !medium()) return;
    const box = corners(start, place(event));
    if (box[2] - box[0] < 0.01 || box[3] - box[1] < 0.01) return;
    dragged = true;
    if (medium().pause) medium().pause();
    show(box);
});
document.addEventListener("pointerup", event => {
    if (start && dragged && medium()) {
        trigger("select", {box: corners(start, place(event)), time: medium().currentTime ?? null});
    }
    start = null;
});
element.addEventListener("click", event => {  // what ends a drag does not start the video
    if (dragged) event.preventDefault();
    dragged = false;
}, true);
