"""What `benchmarks.ondevice_quality` asks a model: everyday texts with a summary each, questions, and tasks with one
right answer. All of it was written for this benchmark, so no model has read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A text. `summary`: what a person would say of it. `subject`: words, of which a summary or title has one.
    `facts`: names and numbers that a rewriting keeps."""

    name: str
    text: str
    summary: str
    subject: tuple[str, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """`tool`: the one that leads to it. `answers`: each must be in the final answer, without commas and case."""

    task: str
    tool: str
    answers: tuple[str, ...]


SAMPLES = (
    Sample(
        "complaint",
        "Dear Sir or Madam, on 12 March I bought a washing machine, model Aqua 700, in your shop in Mill Street. It "
        "cost 459 euros, and your driver delivered it on 15 March. Since the first day it has leaked water through "
        "the door. I called your service number four times. Twice nobody answered, once I was promised a "
        "technician who never came, and the last time I was told to wait for another three weeks. Meanwhile the "
        "floor of my kitchen is damaged. I expect you to replace the machine before 30 April, or to give me back "
        "the money. If I do not hear from you I will ask a lawyer for help. Yours faithfully, Helen Brandt",
        "Helen Brandt complains that the washing machine she bought in March leaks and that the service did not "
        "help. She wants a new machine or her money back by 30 April.",
        ("washing machine", "machine"),
        ("12 March", "459", "Aqua 700", "Brandt", "30 April"),
    ),
    Sample(
        "mail",
        "hi Sam, sorry i missed you yesterday!! the train from Leeds was 40 mins late and then my phone died. about "
        "saturday: can we move dinner from 7 to 8? my sister Kate is coming with her two kids and they only get in "
        "at half past six. i'll bring the salad and a cake, could you do the pasta again? that one with mushrooms "
        "was so good. oh and don't forget to bring back my ladder, i need it on sunday for the gutter. bye, Joe",
        "Joe asks Sam to move the dinner on Saturday from 7 to 8 because his sister Kate comes late with her "
        "children. Sam should cook pasta and bring back the ladder.",
        ("dinner", "saturday"),
        ("Sam", "Leeds", "40", "Kate", "Joe"),
    ),
    Sample(
        "minutes",
        "Minutes of the library committee, 4 May. Present: Mrs Okafor, Mr Lind, Ms Perez. The roof of the reading "
        "room will be repaired in July for 18,200 pounds, so the room is closed from 3 to 28 July. Mr Lind will ask "
        "the school whether readers may use its hall in these weeks. The number of visitors rose to 2,350 in "
        "April, mostly because of the new opening hours on Sunday. Ms Perez wants to buy 60 audio books; the "
        "committee agreed, as long as they cost less than 900 pounds together. Mrs Okafor reported that two "
        "volunteers have left and will put a notice at the door. The next meeting is on 8 June.",
        "The library committee decided that the reading room closes in July while its roof is repaired, and agreed "
        "to buy 60 audio books. There are more visitors since the library opens on Sunday.",
        ("library", "committee", "reading room"),
        ("18,200", "Lind", "Perez", "2,350", "8 June"),
    ),
    Sample(
        "news",
        "The town of Arlow has opened a ferry line that runs on batteries alone. The boat, named Tern, carries 120 "
        "passengers and 30 bicycles across the bay to Port Sella in 14 minutes. Until now people had to drive 22 "
        "kilometres around the bay, which takes half an hour when the bridge is crowded. The ferry is charged at "
        "night, when electricity is cheap, and for six minutes after each crossing. It cost 5.1 million euros, of "
        "which the state paid half. Mayor Ruth Calder said that she expects 900 passengers a day. Fishermen had "
        "protested because they feared waves in the small harbour, but tests in the autumn showed that the boat "
        "makes hardly any.",
        "Arlow has a new electric ferry across the bay to Port Sella. It takes 14 minutes, cost 5.1 million euros, "
        "and is meant to carry 900 passengers a day.",
        ("ferry",),
        ("Arlow", "120", "Sella", "14", "Calder"),
    ),
    Sample(
        "nature",
        "The barn owl hunts at night over fields and meadows. It does not see its prey as much as hear it: its "
        "flat, heart-shaped face gathers sound like a dish and leads it to the ears, one of which is higher in the "
        "head than the other. From the tiny difference between the two the owl knows how far up or down a mouse is, "
        "and can catch it in complete darkness. Soft fringes on the feathers make its flight almost silent. A pair "
        "with young ones needs about 4,000 mice and voles in a year. Barn owls nest in old buildings and hollow "
        "trees. Where barns are converted into houses they lose their homes, but they accept wooden boxes, and in "
        "some regions most of them live in such boxes now.",
        "The barn owl hunts mice at night by hearing, with a face that gathers sound and silent feathers. It nests "
        "in old buildings, and where these disappear it accepts wooden boxes.",
        ("owl", "owls"),
        ("barn owl", "4,000", "mice"),
    ),
    Sample(
        "instructions",
        "To change the wheel of the bicycle, first shift to the smallest gear and turn the bicycle upside down. "
        "Open the brake, then loosen the two nuts with a 15 mm spanner. Lift the wheel out while you pull the gear "
        "arm back with the other hand. Take off the tyre with two levers, pull out the tube, and look for what made "
        "the hole: feel along the inside of the tyre with your fingers. Put in the new tube with a little air in "
        "it so that it does not twist. Press the tyre back over the rim by hand, never with a tool, because that "
        "makes the next hole. Pump it to 4 bar, put the wheel back, tighten both nuts, and close the brake. Check "
        "that it brakes before you ride.",
        "How to repair a flat tyre of a bicycle: take the wheel out, find what made the hole, put in a new tube, "
        "pump it up and put the wheel back. Check the brake before riding.",
        ("wheel", "bicycle", "tyre", "tire"),
        ("15 mm", "4 bar", "brake"),
    ),
    Sample(
        "diary",
        "We left the hut at five because thunderstorms were forecast for the afternoon. The path climbs over stones "
        "beside the stream for two hours, then turns left into the snow. Marta went first and cut steps; Anton "
        "carried the rope, which we did not need in the end. At nine we stood on the saddle at 2,870 metres and "
        "could see the lake on the other side. The last part to the summit is easy but long, and my knee began to "
        "hurt. We reached the cross at half past eleven, ate bread and cheese, and saw the first clouds. The way "
        "down took us only three hours. It began to rain when we closed the door of the hut behind us.",
        "A group climbs a mountain early because of thunderstorms, reaches the summit at half past eleven, and is "
        "back at the hut just before the rain.",
        ("hut", "summit", "mountain", "climb", "hike", "climbed", "trek"),
        ("Marta", "Anton", "2,870"),
    ),
    Sample(
        "advertisement",
        "The Luma reading lamp gives warm light for your evenings and cold light for your work, at the touch of a "
        "finger. Its arm of aluminium stays where you put it, and its foot is heavy enough for any desk. The "
        "battery lasts for 11 hours and is full again after 90 minutes on any charger of a telephone. There are 5 "
        "levels of brightness, and a timer that turns the lamp off when you fall asleep over your book. The lamp "
        "weighs 640 grams, comes in white, green and black, and costs 39 dollars. We repair it for free for six "
        "years, and when it is beyond repair we take it back.",
        "The Luma is a reading lamp with a battery for 11 hours, warm and cold light, and a timer. It costs 39 "
        "dollars and is repaired for free for six years.",
        ("lamp", "luma"),
        ("Luma", "11", "90", "640", "39"),
    ),
)

QUESTIONS = (
    ("What is the capital of France?", ("paris",)),
    ("How many days are in a week?", ("7", "seven")),
    ("What color is the sky on a clear day?", ("blue",)),
    ("Which planet do we live on?", ("earth",)),
    ("What is the opposite of hot?", ("cold", "cool")),
    ("What do bees make?", ("honey",)),
    ("Who wrote the play Romeo and Juliet?", ("shakespeare",)),
    ("What is water made of?", ("hydrogen", "h2o")),
    ("Which language is spoken in Spain?", ("spanish",)),
    ("What is 2 + 2?", ("4", "four")),
)
"""Any of the answers will do."""

DIALOGUE = (
    "My name is Anna and I have a dog called Rex. Say hello to me.",
    "What is my name?",
    "What is my dog called?",
)
DIALOGUE_ANSWERS = ((), ("anna",), ("rex",))

FILES = {
    "shopping.txt": "12 eggs\n2 litres of milk\n500 g flour\n1 jar of honey\n",
    "contacts.txt": "Tom Reed: 555-1234\nAnna Bell: 555-9876\n",
    "todo.txt": "call the dentist on Monday\npay the rent\nwater the plants\n",
}

NOW = "2026-11-27 14:03:09 Friday (UTC)"
"""What the `time` tool says, so that prompts are the same every time."""

TASKS = (
    Task("What is 23 * 47?", "calculator", ("1081",)),
    Task("What is 1284 + 3977?", "calculator", ("5261",)),
    Task("What is (15 + 27) * 3?", "calculator", ("126",)),
    Task("Divide 1001 by 7.", "calculator", ("143",)),
    Task("What is the square root of 1764?", "calculator", ("42",)),
    Task("What is 2 to the power of 20?", "calculator", ("1048576",)),
    Task("I buy 12 boxes with 24 eggs each. How many eggs are that?", "calculator", ("288",)),
    Task("What is 17% of 340?", "calculator", ("57.8",)),
    Task("How many kilometers are 5 miles?", "convert_units", ("8.04",)),
    Task("Convert 100 fahrenheit to celsius.", "convert_units", ("37.7",)),
    Task("How many grams are 2 pounds?", "convert_units", ("907",)),
    Task("How many minutes are 3 days?", "convert_units", ("4320",)),
    Task("What is 10 kg in pounds?", "convert_units", ("22.04",)),
    Task("What day of the week is it?", "time", ("friday",)),
    Task("What time is it now?", "time", ("14:03",)),
    Task("Which year is it?", "time", ("2026",)),
    Task("Which files are in the folder?", "list_files", ("shopping.txt", "contacts.txt", "todo.txt")),
    Task("Read todo.txt. Whom should I call?", "read_file", ("dentist",)),
    Task("What is the phone number of Tom Reed?", "search_files", ("555-1234",)),
    Task("Which file mentions the dentist?", "search_files", ("todo.txt",)),
)

ENGLISH = """
a an the and or but if of in on at to for from by with as is are was were be been being it its this that these
those he she they his her their them him i you your we our us my me not no do does did have has had will would
can could should may might must there which who whom what when where how than then so such also into about
over under between after before during more most some any all each other one two both only very just up out
off s t
"""
"""Words that every English text has; a measure of what a text says leaves them out."""
