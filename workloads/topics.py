"""Sentences by topic, with slots in braces; see ``generated.py`` for what the slots are.

The first lines of a topic (up to the blank one) can open a passage, the others follow in any
order. Slots of the cast (``{person}``, ``{place}``, ``{year}`` ...) keep their value throughout a
passage, so that its sentences speak of the same things.
"""

from __future__ import annotations

TOPICS: tuple[str, ...] = (
    # A building
    """
The {building} of {place} was begun in {year} to plans by {person}, a {trade} from {place2}.
In {year}, {org} decided to replace the old {building} at {place} with one of {material}.
Visitors to {place} usually come for the {building}, which {person} finished in {year}.

Its walls are of {material} up to a height of {3-28} metres and of {material} above that.
The cost was put at {#2100-98000} crowns, of which {org} paid {12-80} per cent.
The {room} was added in {later} and has hardly been altered since.
Work stopped for {small} months {because}.
The foundations rest on {#120-900} piles of {material}, driven by hand.
A {quality} staircase of {14-96} steps leads from the {room} to the {room}.
{person2}, who kept the accounts, recorded deliveries of {material} every {weekday}.
The roof was blown off in {month} {later} and rebuilt within {small} weeks.
Above the door is a {colour} plaque with the names of {5-40} workers.
{surname} wanted a tower as well, but the council of {place} refused the money.
On the {side} side, the {goods} were unloaded from carts and weighed.
Repairs in {later} replaced the {material} beams, {because}.
Today the {room} is used for exhibitions, and the {room} is open on {weekday} afternoons.
Engineers from {place2} measured the cracks with a {instrument} and found them harmless.
The windows face {side}, so that the {room} is {quality} even in {month}.
""",
    # A firm
    """
{org} was founded in {year} by {person} to carry {goods} between {place} and {place2}.
For most of its history, {org} made its money from {goods} rather than from {goods}.
{person} took over {org} in {year}, when it had {small} employees and a single {machine}.

In its first year the firm sold {#300-9000} crates of {goods}.
The head office stood next to the {building} in {place}, with a branch in {place2} from {later}.
{person2} kept the books and distrusted every bill that did not come from {place2}.
A new {machine} doubled the output but needed a {piece} that only one supplier could make.
Prices rose by {4-45} per cent {because}.
The strike of {later} lasted {small} weeks and ended with a shorter working day.
Most of the {goods} went to {place2} by rail, the rest by water.
An advertisement in the {paper} praised the {goods} as {quality} and {quality}.
The founder's heirs sold {10-60} per cent of the shares to {org2} in {later}.
Workers were paid on {weekday}s and could buy {goods} at half price.
In {month} {later}, an inspector counted {#40-900} barrels that appeared in no ledger.
The trademark, a {colour} {animal}, was drawn by {last} in an afternoon.
Attempts to export {goods} failed {because}.
By the end of the decade the company ran {5-60} wagons and {small} barges.
""",
    # A journey
    """
The expedition left {place} on {1-28} {month} {year} with {small} mules and a {instrument}.
{person} set out from {place} in the {season} of {year} to map the country beyond {place2}.
Little was known about the hills behind {place2} until {person} crossed them in {year}.

Its purpose was to find a {quality} route for the transport of {goods}.
On the {ordinal} day they reached a {habitat} that was on no map.
{person2}, the only {trade} in the party, kept a diary in a {colour} notebook.
The {instrument} was damaged at a ford and had to be repaired with {material}.
They camped at an altitude of {#400-3900} metres, beside a stream full of trout.
Food ran short {because}, and for {small} days there was nothing but {food} and {food}.
Each evening {surname} wrote down the temperature, the wind and the state of the mules.
The guide from {place2} refused to go further than the {habitat}.
At noon the {instrument} showed {3-38} degrees, at midnight barely {1-12}.
{surname} collected {#60-900} specimens, among them a {colour} {plant} new to science.
The map, drawn at a scale of one to {#10000-90000}, was printed in {place} in {later}.
The return took {small} weeks longer than planned, {because}.
Near the pass they found the ruins of a {building} built of {material}.
""",
    # A study
    """
In {year}, a team led by {person} began a study of {subject} in {place} and {place2}.
What is known about {subject} comes mostly from work done in {place} since {year}.
{person} and {person2} published their first results on {subject} in {year}.

The sample comprised {#80-4800} cases, of which {3-30} per cent had to be left out.
Measurements were taken every {small} hours with a {instrument}.
The effect was strongest in {month} and disappeared entirely by {month}.
A control group in {place2} showed a change of only {1-9}.{1-9} per cent.
The authors warn that the result may not hold outside {place}.
{surname} had expected the opposite, {because}.
Earlier estimates, based on {#12-90} observations, were too high by a factor of {small}.
Funding came from {org} and ended in {later}.
When {org2} repeated the work in {later}, it found {1-9}.{1-9} instead of {1-9}.{1-9}.
The correlation was weak in the {season} and {quality} at other times.
Participants kept a diary for {small} weeks and were paid {12-90} crowns.
Critics pointed out that the {instrument} had been calibrated only once.
One table lists the values for each {weekday} separately, with no clear pattern.
Further work is planned on {subject}, with {material} samplers in place of {material} ones.
""",
    # A life
    """
{person} was born in {place} in {year}, the {ordinal} child of a {trade}.
{person} is remembered in {place} as a {trade}, although {surname} trained as a {trade}.
Of the early years of {person}, a {trade} from {place}, almost nothing is known.

At the age of {9-19}, {surname} was sent to {place2} to learn the trade of a {trade}.
An aunt in {place2}, who dealt in {goods}, paid for the lessons.
The first commission came from {org} and brought in {#40-900} crowns.
{surname} never married but exchanged more than {#100-900} letters with {person2}.
In {later} an accident with a {machine} ended this work.
Friends described a {quality} and {quality} person with a weakness for {food}.
The notebooks, bound in {material}, are kept in the {building} of {place}.
{surname} quarrelled with {person2} over {dispute}.
A small {instrument} invented during these years is still in use.
After {later}, {surname} lived in two rooms above the {building} and taught for a living.
The {paper} gave the death no more than {small} lines.
A street on the {side} side of {place} has carried the name since {later}.
{surname} spoke {small} languages and was {feeling} in all of them.
The best known work, finished in {month} {later}, was later sold to {org2}.
""",
    # Minutes
    """
The committee of {org} met on {1-28} {month} {year} in the {room}, with {person} in the chair.
Present were {person}, {person2} and {small} other members; {last} had sent apologies.
Minutes of the meeting held at {place} on {weekday}, {1-28} {month} {year}.

The treasurer reported a balance of {#200-9000} crowns, {3-40} per cent less than a year ago.
{surname2} proposed to repair the {room} before the {season}.
It was agreed to order {15-400} metres of {material} from {place2}.
A letter from {last} about {dispute} was read and discussed at length.
The motion was carried by {8-20} votes to {small}.
{surname} reminded the members that the {instrument} still had to be returned to {place2}.
The purchase of a {machine} was put off {because}.
Members complained that the {room} had been {quality} since {month}.
The annual outing will go to {place2}, by boat, on the last {weekday} of {month}.
{surname2} will ask {org2} for a second offer.
A vote of thanks was given to {last}, who had repaired the {piece} free of charge.
The fee stays at {4-60} crowns for members and {61-95} for guests.
Nobody could say who held the key to the {room}.
The next meeting is to take place on {1-28} {month} at {2-11} o'clock.
""",
    # Instructions
    """
Before starting the {machine}, make sure that the {piece} is clean and the {piece} is closed.
This section describes how to replace the {piece} of a {machine} made after {year}.
The {machine} at {place} was delivered by {org} and must be serviced every {#100-900} hours.

Turn the {colour} lever to the {side} position and wait for {20-90} seconds.
The pressure should then read between {2-9} and {10-19} bar.
If the {piece} rattles, loosen the {small} screws on the left and adjust the {piece}.
Never use {material} tools near the {piece}, as they leave scratches.
A thin film of oil on the {piece} is normal; drops are not.
Write the reading in the {colour} book that hangs in the {room}.
The {piece} wears out after about {#200-4000} hours and costs {15-95} crowns.
Report any smell of burning to {person2}, who is in charge of the {room}.
Lift the cover with both hands, since it weighs {11-48} kilograms.
In cold weather the {machine} needs {small} minutes before it runs evenly.
The {colour} wire goes to the {piece}, the {colour} one to the {piece}.
Spare parts are kept in the {room}, in drawers {2-9} to {10-40}.
Should the {machine} stop by itself, check the {piece} first and the {piece} last.
Models built before {later} have a {piece} of {material}, which must not be painted.
""",
    # A letter
    """
Dear {first}, we arrived in {place} on {weekday} after {small} hours on a {quality} train.
Dear {first}, thank you for the {goods}, which reached {place} in good order on {weekday}.
My dear {first}, you ask what became of {person}; I can tell you at last.

The house has a {quality} kitchen and a view of the {building}.
{surname2} sends greetings and asks whether you still have the {instrument}.
I was {feeling} to hear that the {building} will be closed.
For {small} days it has rained, and the road to {place2} is under water.
At supper there was {food} with {spice}, and nobody spoke about {dispute}.
Please send {small} metres of {material} and, if you can find it, some {goods}.
Yesterday I saw a {animal} in the {habitat}, {small} steps away.
The {trade} next door tells stories of {place2} that I only half believe.
I have sold the {machine} for {70-900} crowns, which is less than I hoped.
{surname} has promised to write to {org}, but you know how that goes.
The children collect {plant} and have turned the {room} into a museum.
We could not visit {place2} {because}.
I shall be back on the {ordinal} of {month}, if the boats are running.
Do not tell {last} yet; I am still too {feeling} about it myself.
""",
    # An animal
    """
The {place} {animal} is a {quality} {animal} with {colour} markings, found mainly in {habitats}.
The {colour}-backed {animal} was first described by {person} in {year} from the coast at {place}.
Few animals of the {habitat} have been studied as closely as the {place} {animal}.

Adults are {11-90} centimetres long and weigh up to {#120-3900} grams.
It feeds on {plant} and on the larvae that live in rotting wood.
The female lays {small} eggs in {month}, usually in a {habitat}.
Its call, a {quality} whistle, carries for about {#200-900} metres.
A count in {later} found {#60-9000} individuals, most of them on the {side} bank.
Numbers have fallen by {8-75} per cent since the {habitat} near {place2} was drained.
In {season} it moves to lower ground, where {plant} and {plant} give cover.
Young animals are {colour} and change their colour in the {ordinal} month.
{person2} fitted {15-95} of them with rings and saw {small} again.
It shares its range with a {animal}, but the two avoid each other.
The tail is short, the bill {colour}, and the feet are {colour}.
Local people believe that it announces rain, {because}.
Since {later} the species has been protected in {place} but not in {place2}.
It tolerates salt better than any other {animal} and sleeps standing on one leg.
""",
    # A competition
    """
The {year} {sport} championship was held in {place} from {1-9} to {10-28} {month}.
{person} of {place} won the {sport} title in {year}, {small} points ahead of {person2}.
Nobody expected the {sport} club of {place} to reach the final of {year}.

The final was watched by {#900-9800} people, more than the stands could hold.
{surname2} led until the last round and then lost {small} points in a row.
It rained throughout, and the start was moved to {2-11} o'clock.
The club from {place2} protested against the result, but the jury turned it down.
Training took place before work, in the {room} of the old {building}.
The prize was a {colour} cup and {#100-900} crowns, given by {org}.
{surname} had been injured in {month} and competed with a bandaged hand.
The record of {1-9} minutes and {11-59} seconds stood until {later}.
A reporter of the {paper} called the decision {quality} and the winner {quality}.
Of the {18-95} entrants, {small} gave up before the halfway point.
The course led along the {side} shore and back past the {building}.
In the semi-final, {place} beat {place2} by {8-21} to {small}.
The coach, a retired {trade}, allowed neither {food} nor late nights.
Tickets cost {2-15} crowns and were sold at the {building}.
""",
    # A lawsuit
    """
In {year}, {person} took {org} to court in {place} over {dispute}.
The case of {last} against {person}, heard in {place} in {year}, concerned {dispute}.
For {small} years the neighbours {person} and {person2} argued about {dispute}.

The plaintiff asked for {#300-9800} crowns and an apology in the {paper}.
{surname2} testified that the {goods} had been delivered on a {weekday}.
The judge visited {place} with a {instrument} and a {trade} as an expert.
A map of {later} was produced, on which the {building} stood on the wrong side.
The defence argued that no contract had been signed, {because}.
Of the {small} witnesses, {small} contradicted each other.
The court found that the {material} had been paid for and the {goods} had not.
An appeal was heard in {place2} in {later} and dismissed within {small} days.
Costs came to {#200-4000} crowns, which was more than the sum at stake.
{surname} accepted the ruling but moved to {place2} soon after.
The decision is still quoted when {goods} are sold by weight.
A clerk noticed that the date on the receipt, {1-28} {month}, fell on a holiday.
The two sides settled over {food} and wine in the {room} of an inn.
The file, {#90-900} pages long, was found in the {room} of the {building}.
""",
    # An incident in operation
    """
On {1-28} {month} {year} the {service} of {org} was unavailable for {12-95} minutes.
This report covers the failure of the {service} in {place} on {weekday}, {1-28} {month} {year}.
At {1-9}:{10-59} in the morning, the {service} began to return errors to users in {place}.

The cause was {fault}, which had gone unnoticed since {month}.
About {2-60} per cent of requests failed, most of them from {place2}.
{person} was on call and restarted the {service}, without success.
The alarm came {11-55} minutes late {because}.
Logs show {#200-9800} attempts within {small} minutes.
{surname2} suspected {fault} and moved the traffic to {place2}.
No data was lost, although {#20-900} records had to be entered again by hand.
The {service} depends on the {service}, a fact missing from the manual.
A test for {fault} now runs every {weekday} night.
Response times rose from {11-90} to {#110-9000} milliseconds before the first error.
The fix, a change of {small} lines, was reviewed by {person2} and released at noon.
Customers were told on {weekday}, which {surname} considered too late.
Capacity will be raised by {10-80} per cent before the {season}.
The same {service} had failed in {month} for another reason, {fault}.
""",
    # A dish
    """
In {place}, {food} with {food} is eaten on the first {weekday} of {month}.
The dish that made {place} known is a stew of {food} and {food}, first written down in {year}.
This recipe for {food} comes from {person}, who cooked for {org} until {later}.

Soak {#200-900} grams of {food} overnight in cold water with a little {spice}.
Cut the {food} into pieces as thick as a finger and fry them until brown.
Add {small} spoons of {spice}, the chopped {food} and {2-9} decilitres of stock.
Let it simmer for {25-95} minutes without a lid, stirring now and then.
In {place2} people use {food} instead of {food}, and more {spice}.
{person2} insists on {spice} and considers {spice} a mistake.
Serve with {food} and a glass of something {quality}.
The crust should be {colour} and sound hollow when tapped.
Leftovers keep for {small} days in a cool {room}.
A pot of {material} holds the heat better than one of {material}.
The original calls for {food}, which was cheap {because}.
Some add {spice} at the end; in {place} this is thought {quality}.
Season with {spice}, cover, and leave in the oven at {#120-220} degrees.
""",
    # A place
    """
{place} lies on the {side} bank of the {river}, {8-90} kilometres from {place2}.
With {#900-98000} inhabitants, {place} is the largest town between the {river} and {place2}.
The district of {place} was formed in {year} from {small} villages along the {river}.

The oldest mention of the town is in a list of {goods} sent to {place2} in {early}.
About {5-70} per cent of the land is {habitat}, the rest fields of {food}.
Its economy rests on {goods} and, since {later}, on visitors to the {building}.
The {river} froze in {later}, so that carts could cross from {month} to {month}.
The {side} quarter burned down in {year} and was rebuilt in {material}.
A market for {goods} is held every {weekday} in front of the {building}.
The average temperature is {2-9} degrees in {month} and {15-24} in {month}.
{person}, a {trade}, is the best known native of the town.
The railway arrived in {later}, {small} years after it had reached {place2}.
The coat of arms shows a {colour} {animal} over {small} {colour} waves.
Buses to {place2} leave every {12-55} minutes from the {building}.
Floods are frequent on the {side} side, where {plant} and {plant} cover the banks.
Its dialect has {small} words for {goods} that are not understood in {place2}.
The school, opened by {org} in {later}, has {#90-900} pupils.
""",
)
