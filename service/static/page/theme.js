// Before the first paint: the colour scheme that was chosen here, if one was.
document.documentElement.dataset.theme = localStorage.getItem("imageprompt.theme") ?? "auto";
