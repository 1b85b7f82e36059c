"""What generated passages tell of: buildings, firms, journeys, studies, lives, contests, lawsuits,
towns. Patterns of sentences with slots in braces; ``generated.py`` says what the slots are.

The first lines of a topic (up to the blank one) can open a passage, the others follow in any
order. Slots of the cast (``{person}``, ``{place}``, ``{year}`` ...) keep their value throughout a
passage, so that its sentences speak of the same things. These sentences also read well with a lead
("According to Penrose, ...") or an aside at the end.
"""

from __future__ import annotations

ACCOUNTS: tuple[str, ...] = (
    # A building
    """
The {building} of {place} was begun in {year} to plans by {person}, a {trade} from {place2}.
In {year}, {org} decided to replace the old {building} at {place} with one of {stone}.
Visitors to {place} usually come for the {building}, which {person} finished in {year}.

Its walls are of {stone} up to a height of {3-28} metres and of {stone} above that.
The cost was put at {#2100-98000} crowns, of which {org} paid {12-80} per cent.
The {room} was added in {later} and has hardly been altered since.
Work stopped for {small} months {because}.
The foundations rest on {#120-900} piles of oak, driven by hand.
A {quality} staircase of {14-96} steps leads from the {room} to the {room}.
{person2}, who kept the accounts, recorded deliveries of {material} every {weekday}.
The roof was blown off in {month} {later} and rebuilt within {small} weeks.
Above the door is a {colour} plaque with the names of {5-40} workers.
{surname} wanted a tower as well, but the council of {place} refused the money.
On the {side} side, the {goods} were unloaded from carts and weighed.
Repairs in {later} replaced the {stone} in the {room} {because}.
Today the {room} is used for exhibitions, and the {room} is open on {weekday} afternoons.
Engineers from {place2} measured the cracks with a {instrument} and found them harmless.
The windows face {side}, so that the {room} is cold even in {month}.
""",
    # A firm
    """
{firm} was founded in {year} by {person} to carry {goods} between {place} and {place2}.
For most of its history, {firm} made its money from {goods} rather than {goods}.
{person} took over {firm} in {year}, when it had {small} employees and a single {machine}.

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

Its purpose was to find a shorter route for the transport of {goods}.
On the {ordinal} day they reached a {habitat} that was on no map.
{person2}, the only {trade} in the party, kept a diary in a {colour} notebook.
The {instrument} was damaged at a ford and had to be repaired with {material}.
They camped at an altitude of {#400-3900} metres, beside a stream full of {fish}.
Food ran short {because}, and for {small} days there was nothing but {food} and {food}.
Each evening {surname} wrote down the temperature, the wind and the state of the mules.
The guide from {place2} refused to go further than the {habitat}.
At noon the thermometer showed {3-38} degrees, at midnight barely {1-12}.
{surname} collected {#60-900} specimens, among them a {colour} {plant} new to science.
The map, drawn at a scale of one to {#10000-90000}, was printed in {place} in {later}.
The return took {small} weeks longer than planned, {because}.
Near the pass they found the ruins of a {building} built of {stone}.
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
The correlation was weak in the {season} and {strength} at other times.
Participants kept a diary for {small} weeks and were paid {12-90} crowns.
Critics pointed out that the {instrument} had been calibrated only once.
Table {2-19} lists the values for each {weekday} of {later} separately.
Further work is planned on {subject}, with a better {instrument}.
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
Friends described a {temper} and {temper} person with a weakness for {food}.
The notebooks, bound in {material}, are kept in the {building} of {place}.
{surname} quarrelled with {person2} over {dispute}.
A small {instrument} invented during these years is still in use.
After {later}, {surname} lived in two rooms above the {building} and taught for a living.
The {paper} gave the death no more than {small} lines.
A street on the {side} side of {place} has carried the name since {later}.
{surname} spoke {small} languages and was {temper} in all of them.
The best known work, finished in {month} {later}, was later sold to {org2}.
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
A reporter of the {paper} called the decision {strange} and the winner {temper}.
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
The decision is still quoted in the trade with {goods}.
A clerk noticed that the date on the receipt, {1-28} {month}, fell on a holiday.
The two sides settled over {food} and wine in the {room} of an inn.
The file, {#90-900} pages long, was found in the {room} of the {building}.
""",
    # A place
    """
{place} lies on the {side} bank of the {river}, {8-90} kilometres from {place2}.
With {#900-98000} inhabitants, {place} is the largest town between the {river} and {place2}.
The district of {place} was formed in {year} from {small} villages along the {river}.

The oldest mention of the town is in a list of {goods} sent to {place2} in {early}.
About {5-70} per cent of the land is {habitat}, the rest fields of {crop}.
Its economy rests on {goods} and, since {later}, on visitors to the {building}.
The {river} froze in {later}, so that carts could cross from {month} to {month}.
The {side} quarter burned down in {year} and was rebuilt in {stone}.
A market for {goods} is held every {weekday} in front of the {building}.
The average temperature is {2-9} degrees in January and {15-24} in July.
{person}, a {trade}, is the best known native of the town.
The railway arrived in {later}, {small} years after it had reached {place2}.
The coat of arms shows a {colour} {animal} over {small} {colour} waves.
Buses to {place2} leave every {12-55} minutes from the {building}.
Floods are frequent on the {side} side, where {plant} and {plant} cover the banks.
Its dialect has {small} words for {goods} that are not understood in {place2}.
The school, opened by {org} in {later}, has {#90-900} pupils.
""",
)
