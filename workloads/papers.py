"""Other papers that generated passages come from: minutes, manuals, letters, descriptions of
animals, reports, recipes. Patterns as in ``accounts.py``, used as they stand.
"""

from __future__ import annotations

PAPERS: tuple[str, ...] = (
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
Members complained that the {room} had been cold since {month}.
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

Turn the {colour} lever to the {ordinal} position and wait for {20-90} seconds.
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
Yesterday I saw a {animal} at the edge of the {habitat}, {small} steps away.
The {trade} next door tells stories of {place2} that I only half believe.
I have sold the {machine} for {70-900} crowns, which is less than I hoped.
{surname} has promised to write to {org}, but you know how that goes.
The children collect {plant} and have turned the {room} into a museum.
We could not visit {place2} {because}.
I shall be back on {1-28} {month}, if the boats are running.
Do not tell {last} yet; I am still too {feeling} about it myself.
""",
    # An animal
    """
The {place} {animal} is a {quality} animal with {colour} markings, found mainly in {habitats}.
The {colour}-backed {animal} was first described by {person} in {year} from the coast at {place}.
Few animals of the {habitat} have been studied as closely as the {place} {animal}.

Adults are {11-90} centimetres long and weigh up to {#120-3900} grams.
It feeds on {plant} and on the larvae that live in rotting wood.
The female lays {small} eggs in {month}, usually in a {habitat}.
Its call, a {sound} whistle, carries for about {#200-900} metres.
A count in {later} found {#60-9000} individuals, most of them on the {side} bank.
Numbers have fallen by {8-75} per cent since the {habitat} near {place2} was built over.
In {season} it moves to lower ground, where {plant} and {plant} give cover.
The young are {colour} and change their colour in the {ordinal} month.
{person2} fitted {15-95} of them with rings and saw {small} again.
It shares its range with a {other_animal}, but the two avoid each other.
The back is {colour}, the underside {colour}, and the feet are {colour}.
Local people believe that it announces rain and call it the {temper} {trade}.
Since {later} the species has been protected in {place} but not in {place2}.
It tolerates salt better than the {other_animal} and sleeps for {small} hours at noon.
""",
    # An incident in operation
    """
On {1-28} {month} {recent} the {service} of {org} was unavailable for {12-95} minutes.
This report covers the failure of the {service} in {place} on {weekday}, {1-28} {month} {recent}.
At {1-9}:{10-59} in the morning, the {service} began to return errors to users in {place}.

The cause was {fault}, which had gone unnoticed since {month}.
About {2-60} per cent of requests failed, most of them from {place2}.
{person} was on call and restarted the {service}, without success.
The alarm came {11-55} minutes late {because}.
Logs show {#200-9800} attempts within {small} minutes.
{surname2} suspected {fault} and moved the traffic to {place2}.
No data was lost, although {#20-900} records had to be entered again by hand.
The {service} depends on the {other_service}, a fact missing from the manual.
A test for {fault} now runs every {weekday} night.
Response times rose from {11-90} to {#110-9000} milliseconds before the first error.
The fix, a change of {small} lines, was reviewed by {person2} and released at noon.
Customers were told on {weekday}, which {surname} considered too late.
Capacity will be raised by {10-80} per cent before the {season}.
The same {service} had failed in {month} for another reason, {fault}.
""",
    # A dish
    """
In {place}, a dish of {food} and {food} is eaten on the first {weekday} of {month}.
The dish that made {place} known is a stew of {food} and {food}, first written down in {year}.
This recipe for {food} comes from {person}, who cooked for {org} until {later}.

Soak {#200-900} grams of {food} overnight in cold water with a little {spice}.
Cut the {food} into pieces as thick as a finger and fry them until brown.
Add {small} spoons of {spice}, the chopped {food} and {2-9} decilitres of stock.
Let it simmer for {25-95} minutes without a lid, stirring now and then.
In {place2} people use {food} instead of {food}, and more {spice}.
{person2} insists on {spice} and considers {spice} a mistake.
Serve with {food} and a glass of {drink}.
After {25-95} minutes the crust should be brown and sound hollow when tapped.
Leftovers keep for {small} days in a cool {room}.
A pot of {pot} holds the heat better than one of {pot}.
The original calls for {food}, which was cheap {because}.
Some add {spice} at the end; in {place} this is thought {strange}.
Season with {spice}, cover, and leave in the oven at {#120-220} degrees.
""",
)
