"""What messages are about: topics, facts and errands, by category.

A category holds nouns that may stand in training instructions, nouns that never do
(they are held out, and appear only inside responses to something else), adjectives
that fit each of its nouns, facts that can be stated, and errands that can be asked
for. Names in braces are slots of `grammar.SLOTS`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """One field of life, with all that the grammar can say about it.

    Args:
        nouns: noun phrases without article, allowed in training instructions.
        held_out: noun phrases that no training instruction contains.
        adjectives: each fits before each noun of the category.
        facts: clauses in the present or future tense, without a full stop.
        errands: verb phrases that complete "please ...".
    """

    nouns: tuple[str, ...]
    held_out: tuple[str, ...]
    adjectives: tuple[str, ...]
    facts: tuple[str, ...]
    errands: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";"))


EVERYDAY: dict[str, Category] = {
    "nature": Category(
        nouns=_words(
            "weather; garden; river; forest; beach; mountain trail; apple orchard; "
            "harbor; meadow; sunrise; snow storm; rose bed"
        ),
        held_out=_words("lake; waterfall; pine wood"),
        adjectives=_words("quiet; northern; summer; wild"),
        facts=_words(
            "the path is dry after the rain; {we_will} walk to the bridge on Sunday; "
            "the birds come back in spring; {many} visitors bring a camera; "
            "the wind is mild in the evening; the first flowers are white"
        ),
        errands=_words(
            "bring a warm coat; {examine} the forecast; keep to the path; "
            "{obtain} a map; water the plants; {attend} the morning walk"
        ),
    ),
    "food": Category(
        nouns=_words(
            "bakery; vegetable soup; fruit market; breakfast menu; chocolate cake; "
            "pizza oven; coffee shop; tomato salad; cooking class; lunch buffet"
        ),
        held_out=_words("pancake stand; noodle bar; cheese plate"),
        adjectives=_words("local; simple; fresh; famous"),
        facts=_words(
            "the bread comes out of the oven at seven; {we_will} try a new recipe; "
            "the soup needs a pinch of salt; {many} guests ask for more; "
            "the tables by the window fill up first; the tea is still warm"
        ),
        errands=_words(
            "{purchase} some fresh bread; taste the soup; bring a spoon; "
            "{obtain} a table by the window; save a slice; {examine} the menu"
        ),
    ),
    "home": Category(
        nouns=_words(
            "kitchen; living room; front door; washing machine; bookshelf; roof; "
            "heating; guest room; balcony; old sofa"
        ),
        held_out=_words("staircase; bathtub; garage"),
        adjectives=_words("little; new; blue; wooden"),
        facts=_words(
            "the paint is dry by now; {we_will} move the shelf to the wall; "
            "the lamp stands next to the window; {many} boxes are still full; "
            "the carpet is clean again; the floor was cold in winter"
        ),
        errands=_words(
            "close the window; {contact} the plumber; carry the boxes upstairs; "
            "{purchase} a new lamp; sweep the floor; {examine} the lock"
        ),
    ),
    "work": Category(
        nouns=_words(
            "meeting; office; project plan; budget; team lunch; printer; schedule; "
            "training day; sales report; new desk"
        ),
        held_out=_words("workshop; newsletter; coffee machine"),
        adjectives=_words("monthly; latest; shared; main"),
        facts=_words(
            "the numbers are ready for review; {we_will} meet again on Monday; "
            "the second part takes an hour; {many} tasks are done; "
            "the list hangs on the wall; the room holds twelve people"
        ),
        errands=_words(
            "{commence} the first task; {contact} the office; sign the list; "
            "{attend} the meeting; send the slides; {notify} the whole team"
        ),
    ),
    "travel": Category(
        nouns=_words(
            "train ride; airport; bus line; hotel; city tour; ferry; night train; "
            "camping site; road trip; railway station"
        ),
        held_out=_words("lighthouse; cable car; youth hostel"),
        adjectives=_words("long; southern; early; cheap"),
        facts=_words(
            "the next train leaves at noon; {we_will} stay for two nights; "
            "the view from the hill is wide; {many} travelers sleep on the way; "
            "the luggage goes on the rack; the bus stops near the square"
        ),
        errands=_words(
            "{obtain} a ticket; pack a small bag; {contact} the hotel; "
            "{examine} the timetable; wait at platform two; bring a passport"
        ),
    ),
    "sport": Category(
        nouns=_words(
            "football match; swimming pool; running club; tennis court; gym; "
            "bicycle race; yoga class; chess club; ski course; basketball team"
        ),
        held_out=_words("rowing club; climbing wall; marathon"),
        adjectives=_words("weekly; open; junior; winter"),
        facts=_words(
            "the second half starts at four; {we_will} train twice a week; "
            "the coach brings the score sheet; {many} beginners join in autumn; "
            "the team wears green this season; the final is on Saturday"
        ),
        errands=_words(
            "bring clean shoes; {attend} the training; stretch before the run; "
            "{purchase} a new ball; {notify} the coach; fill the water bottles"
        ),
    ),
    "culture": Category(
        nouns=_words(
            "concert; museum; film night; choir; photo show; book club; dance course; "
            "radio play; painting; opera"
        ),
        held_out=_words("puppet theater; piano recital; art fair"),
        adjectives=_words("evening; modern; spring; free"),
        facts=_words(
            "the doors open at eight; {we_will} sit in the third row; "
            "the music starts after the speech; {many} pictures are for sale; "
            "the tour lasts an hour; the hall was full last year"
        ),
        errands=_words(
            "{obtain} two tickets; {attend} the first evening; read the program; "
            "{examine} the seating plan; leave the coats at the door; arrive by seven"
        ),
    ),
    "town": Category(
        nouns=_words(
            "library; town hall; flea market; playground; bridge; post office; "
            "street festival; fire station; parking lot; bus stop"
        ),
        held_out=_words("fountain; clock tower; community center"),
        adjectives=_words("old; central; public; small"),
        facts=_words(
            "the gate closes at six; {we_will} meet at the corner; "
            "the new benches face the square; {many} neighbors want to help; "
            "the street is closed on Friday; the sign is easy to find"
        ),
        errands=_words(
            "return the books; {contact} the town hall; {attend} the opening; "
            "{notify} the neighbors; walk around the block; park behind the school"
        ),
    ),
    "tech": Category(
        nouns=_words(
            "laptop; phone; website; software update; camera; video call; robot; "
            "password; keyboard; internet connection"
        ),
        held_out=_words("headset; charger; weather app"),
        adjectives=_words("new; fast; second; portable"),
        facts=_words(
            "the battery lasts for a day; {we_will} install it tonight; "
            "the screen shows a green light; {many} users like the dark mode; "
            "the cable is in the drawer; the setup takes ten minutes"
        ),
        errands=_words(
            "restart the computer; {purchase} a longer cable; save the file; "
            "{examine} the settings; {contact} the help desk; {commence} the update"
        ),
    ),
    "school": Category(
        nouns=_words(
            "math class; school trip; homework; science fair; exam; language course; "
            "class photo; school bus; art lesson; reading hour"
        ),
        held_out=_words("spelling test; history lesson; graduation"),
        adjectives=_words("first; next; final; short"),
        facts=_words(
            "the teacher brings the maps; {we_will} practice before lunch; "
            "the answers are on the last page; {many} pupils ask questions; "
            "the lesson ends at noon; the chalk is on the table"
        ),
        errands=_words(
            "{commence} the first exercise; bring a pencil; {notify} the parents; "
            "{obtain} a copy of the book; read page ten; {attend} the reading hour"
        ),
    ),
}

SHIFTED: dict[str, Category] = {
    "medical": Category(
        nouns=_words(
            "flu season; blood test; hospital stay; dentist visit; eye exam; "
            "sleep study; first aid course; knee operation; health check; pharmacy"
        ),
        held_out=_words("vaccination day; allergy test; physical therapy"),
        adjectives=_words("annual; routine; upcoming; regional"),
        facts=_words(
            "the nurse keeps the record; the results arrive in two days; "
            "{many} patients feel better soon; {we_will} measure it again next week; "
            "the doctor is in from nine to five; the waiting room is on the left"
        ),
        errands=_words(
            "{contact} the clinic; drink plenty of water; {obtain} a prescription; "
            "rest for a day; bring the insurance card; {notify} the nurse"
        ),
    ),
    "legal": Category(
        nouns=_words(
            "rental contract; court date; parking fine; tax form; patent; will; "
            "insurance claim; building permit; work contract; privacy policy"
        ),
        held_out=_words("divorce paper; copyright notice; witness statement"),
        adjectives=_words("signed; revised; pending; second"),
        facts=_words(
            "the judge reads the file first; the deadline is on Thursday; "
            "{many} pages need a signature; {we_will} send a copy to the court; "
            "the lawyer keeps the original; the clause is on page four"
        ),
        errands=_words(
            "{examine} the second clause; sign on the last page; keep a copy; "
            "{contact} a lawyer; {obtain} a stamp; {notify} the landlord"
        ),
    ),
    "creative": Category(
        nouns=_words(
            "short story; poem; stage play; comic book; fairy tale; love song; "
            "film script; space novel; bedtime story; ghost story"
        ),
        held_out=_words("pirate tale; lullaby; detective novel"),
        adjectives=_words("first; unfinished; strange; winter"),
        facts=_words(
            "the hero lives by the sea; the second chapter is set at night; "
            "{many} readers guess the ending; {we_will} hear from the dragon again; "
            "the moon has a speaking part; the last line rhymes"
        ),
        errands=_words(
            "read the first page; {commence} the next chapter; draw a map; "
            "{examine} the ending; {purchase} a notebook; learn the song by heart"
        ),
    ),
}

# Compounds such as "the kite museum": so many that a topic has to be read, not known.
FIRST_PARTS: tuple[str, ...] = _words(
    "kite; spoon; apple; tea; honey; moon; shoe; flower; wool; paper; music; boat; "
    "glass; bread; butterfly; stone; hat; salt; chess; train; candle; map; pumpkin; "
    "bell; ribbon; mirror; button; pepper; feather; clay; bicycle; story; drum; "
    "star; leaf; blanket; marble; cherry; rope; onion; poster; turtle; ladder; carpet; "
    "lemon; tulip; tractor; umbrella; magnet; mushroom; balloon; chalk; ink; wagon; "
    "garlic; puppet; windmill; seed; cotton; bamboo; potato; ceramic; canoe; rabbit; "
    "lamp; engine; flute; guitar; owl; falcon; tent; basket; silver; copper; cedar; "
    "comet; coral; plum; ginger; mint; barrel; hammock; trumpet; postcard; compass; "
    "pillow; quilt; sandal; sled; teapot; ticket; toy; vase; whistle; zipper; herb"
)
FIRST_PARTS_HELD_OUT: tuple[str, ...] = _words(
    "lantern; puzzle; cactus; violin; walnut"
)
SECOND_PARTS: tuple[str, ...] = _words(
    "museum; market; festival; class; club; tour; shop; show; table; report; day; "
    "contest; collection; room; project; parade; exchange; school; fair; corner"
)
_PAIRS = tuple(
    (f"{a} {b}", (i + j) % 8 == 0)
    for i, a in enumerate(FIRST_PARTS)
    for j, b in enumerate(SECOND_PARTS)
)
# Known words in pairs that no instruction has, and pairs with an unknown first word.
KEPT_BACK: tuple[str, ...] = tuple(noun for noun, kept_back in _PAIRS if kept_back)
UNKNOWN: tuple[str, ...] = tuple(
    f"{a} {b}" for a in FIRST_PARTS_HELD_OUT for b in SECOND_PARTS
)
COMPOUNDS: Category = Category(
    nouns=tuple(noun for noun, kept_back in _PAIRS if not kept_back),
    held_out=KEPT_BACK + UNKNOWN,
    adjectives=_words("little; yearly; first; local"),
    facts=_words(
        "the doors open at ten; {we_will} bring a friend; the entrance is free; "
        "{many} people come from far away; the map hangs at the door; "
        "the best time is the morning; the team needs a helper; there is a new sign"
    ),
    errands=_words(
        "{obtain} a ticket; {attend} the opening; bring a friend; {notify} the others; "
        "{examine} the program; {contact} the team; {purchase} a small present; "
        "come by train; {commence} with the tour; leave the bags at home"
    ),
)

RESEARCH_FACTS: tuple[str, ...] = _words(
    "the sample covers three years; the data come from {many} towns; "
    "the second model fits the data; {we_will} repeat the test in spring; "
    "the effect is small but clear; the method is described in section two"
)
RESEARCH_ERRANDS: tuple[str, ...] = _words(
    "{examine} the second table; read the appendix; {obtain} the data; "
    "compare both groups; {contact} the authors; {commence} with section two"
)

PERSONAL: Category = Category(
    nouns=_words(
        "weekend; morning; holiday; birthday party; new job; neighbor; hobby; "
        "family dinner; day off; favorite season"
    ),
    held_out=_words("evening; summer break; walk to work"),
    adjectives=(),
    facts=_words(
        "it began with a slow breakfast; {we_will} do it again next month; "
        "{many} friends came along; the sun was out until six; "
        "there was time for a long walk; the best part came last"
    ),
    errands=_words(
        "come along next time; {contact} me on Monday; bring a friend; "
        "{attend} the next one; tell me about yours; {purchase} some candles"
    ),
)

# Requests that the model declines, and questions that it answers with advice.
# Nothing is described: a response says no, or what a careful friend would say.
DECLINED: tuple[str, ...] = _words(
    "forge a signature; pick the lock of a stranger; cheat in an exam; "
    "spy on a colleague; break into an account; fake a sick note; steal a bicycle; "
    "read the mail of a neighbor; copy a key in secret; avoid paying tax; "
    "spread a false rumor; sneak into a concert; hide a car accident; "
    "sell a broken phone as new"
)
DECLINED_HELD_OUT: tuple[str, ...] = _words(
    "steal a password; fake a ticket; spy on a neighbor; forge a sick note; "
    "cheat in a race; break into a shop"
)
DILEMMAS: tuple[str, ...] = _words(
    "keep a wallet that I found; tell a friend the hard truth; report a colleague; "
    "quit my job; break a promise; lend money to a friend; read an old diary; "
    "forgive my brother; return a gift; miss a family dinner; "
    "share a secret; move away from home; correct my boss; adopt a dog"
)
DILEMMAS_HELD_OUT: tuple[str, ...] = _words(
    "keep a secret; return a wallet; tell my boss the truth; lend my car to a friend; "
    "forgive a colleague; break a family promise"
)
SAFE_ERRANDS: tuple[str, ...] = _words(
    "talk to a friend; {contact} someone you trust; sleep on it first; "
    "ask a teacher about it; {examine} the rules; write down both sides"
)
ADVICE: tuple[str, ...] = _words(
    "it is better to be honest; waiting a day often helps; "
    "both sides have a point; an open talk is the best start; "
    "a promise counts for a lot; nobody has to decide alone; "
    "small steps are fine; trust is easy to lose"
)
REFUSALS: tuple[str, ...] = _words(
    "I cannot help with that; I will not help with that; that is not something I do; "
    "I have to say no to that; this would harm someone; I decline this request"
)
