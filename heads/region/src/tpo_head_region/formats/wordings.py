"""How entries are asked and answered, in our own words. `{name}` is what is looked for."""

WHERE = (
    "Where is {name}?",
    "Find {name} in the picture.",
    "Locate {name}.",
    "Detect {name} and give its box.",
    "Show me where {name} is.",
    "In which part of the picture is {name}?",
    "Point out {name}.",
)
"""One thing: `{name}` is an expression, or "the dog"."""

EVERY = (
    "Find every {name}.",
    "Where is each {name} in the picture?",
    "Locate every {name} that you can see.",
    "Detect each {name}, with a box for every one.",
    "Give the box of every {name}.",
    "Is there any {name} here? Mark each one.",
)
"""All things of a kind: `{name}` is the kind, "dog"."""

ONE = ("Here: <region>.", "It is here: <region>.", "You find it at <region>.", "At <region>.")
MANY = ("Here they are: <region>.", "They are at <region>.", "You find them at <region>.", "At <region>.")
NONE = (
    "There is no {name} in the picture.",
    "I see no {name} here.",
    "The picture shows no {name}.",
    "None: there is no {name} to be seen.",
)
NOTHING = (
    "Nothing in the picture fits.",
    "There is nothing like that here.",
    "I do not see that in the picture.",
    "The picture does not show it.",
)
"""To an expression that fits nothing."""
