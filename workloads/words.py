"""Words that sentences are filled with. An entry may itself hold slots; see ``generated.py``.

Entries that can follow "a" start with a consonant or with a, e, i, o, never with a mute h or a u:
the article is chosen by that letter.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(" ".join(entry.split()) for entry in text.split(";"))


WORDS: dict[str, tuple[str, ...]] = {
    "first": _words(
        """Marta; Ivo; Leonie; Tomasz; Agnes; Rafiq; Ingrid; Callum; Yusuf; Petra; Anselm; Noor;
        Beatriz; Henrik; Salma; Dorothea; Kwame; Elise; Matteo; Hana; Oskar; Priya; Lucian; Greta;
        Emeka; Sunniva; Pascal; Mirela; Jonas; Aiko; Wilhelmina; Davor; Fatima; Rupert; Zofia;
        Laszlo; Imogen; Tariq; Astrid; Bogdan; Celeste; Farah; Gideon; Nkechi; Stellan; Odile"""
    ),
    "last": _words(
        """Halloran; Vesterby; Okonjo; Brandt; Castellane; Marchetti; Nakagawa; Penrose;
        Quillfeather; Rasmussen; Szabo; Tolliver; Underhay; Varga; Whitcombe; Zeller; Ashdown;
        Bellamy; Corvino; Drummond; Eklund; Farquhar; Greaves; Holmqvist; Ibarra; Jessop; Kowalczyk;
        Lindqvist; Mbeki; Norrington; Oyelaran; Pettigrew; Rosenthal; Sandoval; Thackeray;
        Verhoeven; Wardle; Yilmaz; Achterberg; Bontempi; Crowther; Dimitrov; Fairweather; Gruber;
        Hovland; Ilves"""
    ),
    "placehead": _words(
        """Harrow; El; Brack; Cold; Orm; Thorn; Wester; Kel; Dun; Ash; Mar; Lind; Stane; Pell; Fen;
        Raven; Grim; Hol; Ves; Tar; Quill; Os; Wyn; Ber; Cal; Drum; Nor; Sel; Ald; Birk; Crag; Ever;
        Gal; Hest; Ing; Kirk; Lun; Mere; Pend; Rud; Skel; Tre; Wald; Yar"""
    ),
    "placetail": _words(
        """mere; stead; ford; holm; wick; by; haven; combe; dale; field; gate; ness; port; shaw;
        thorpe; bridge; minster; worth; burn; mouth; ley; bury; strand; moor; fell; beck"""
    ),
    "month": _words(
        """January; February; March; April; May; June; July; August; September; October; November;
        December"""
    ),
    "weekday": _words("Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday"),
    "season": _words("spring; summer; autumn; winter"),
    "side": _words("north; south; east; west"),
    "small": _words("two; three; four; five; six; seven; nine; ten; eleven; a dozen; fourteen"),
    "ordinal": _words("second; third; fourth; fifth; sixth; seventh; eighth; ninth; tenth"),
    "colour": _words(
        """grey; blue; dark red; yellow; pale green; black; white; copper; brown; violet; cream;
        rust-coloured"""
    ),
    "quality": _words(
        """sturdy; modest; costly; simple; famous; fragile; remarkable; handsome; reliable; elegant;
        old-fashioned; practical; splendid; plain; excellent; ordinary; quiet; curious; pleasant;
        rare; impressive; inexpensive; neat; heavy"""
    ),
    "material": _words(
        """oak; limestone; brick; slate; cast iron; larch; copper; granite; sandstone; concrete;
        elm; steel; basalt; wool; linen; glass; tin; clay; leather; birch bark; zinc; willow"""
    ),
    "goods": _words(
        """barley; salted herring; timber; wool; lamp oil; paper; cheese; coal; glassware; rope;
        dried apples; ironwork; candles; hides; seed potatoes; tea; cement; honey; tobacco; clocks;
        printed cloth; ice; saddles; salt; medicines; bicycle parts"""
    ),
    "building": _words(
        """mill; lighthouse; town hall; granary; chapel; railway station; market hall; observatory;
        boathouse; theatre; library; customs house; bathhouse; brewery; school; pumping station;
        bridge; aqueduct; infirmary; signal tower; warehouse; assembly room"""
    ),
    "room": _words(
        """cellar; attic; reading room; north stair; engine room; kitchen; great hall; workshop;
        gallery; cloakroom; courtyard; boiler house; archive; back office; loft"""
    ),
    "trade": _words(
        """clockmaker; surveyor; schoolteacher; printer; botanist; stonemason; ferry pilot; baker;
        cartographer; engineer; physician; organ builder; weaver; translator; veterinary surgeon;
        lawyer; shipwright; pharmacist; glassblower; librarian; beekeeper; composer; postmaster"""
    ),
    "orgkind": _words(
        """Canal Company; Historical Society; Gas and Water Board; Savings Bank; Steamship Line;
        Institute of Botany; Choral Society; Cooperative Dairy; Harbour Trust; Tramway Company; Free
        Press; Mutual Insurance Office; College of Surveyors; Paper Works; Rowing Club; Geological
        Survey; Textile Museum; Weather Service; Seed Exchange; Electric Company"""
    ),
    "paper": _words(
        """Evening Courier; Weekly Gazette; Observer; Morning Post; Chronicle; Advertiser; Mercury;
        Examiner; Daily Record; Tribune"""
    ),
    "instrument": _words(
        """barometer; theodolite; microscope; tide gauge; pendulum clock; telegraph; sextant; rain
        gauge; spectrometer; seismograph; hygrometer; compass; balance; chronometer; echo sounder;
        thermometer"""
    ),
    "animal": _words(
        """otter; crane; heron; marten; grouse; salamander; beetle; lynx; curlew; moth; hedgehog;
        perch; cicada; falcon; vole; tern; newt; seal; finch; bat; snail; plover"""
    ),
    "plant": _words(
        """heather; alder; gentian; reed; juniper; sedge; saxifrage; bilberry; willowherb; fern;
        hazel; thyme; marsh orchid; rowan; clover; sea lavender; hornbeam; wild garlic; broom"""
    ),
    "habitat": _words(
        """salt marsh; beech wood; peat bog; gravel bank; alpine meadow; estuary; chalk slope;
        disused quarry; reed bed; pine forest; river island; hedgerow; heath; lake shore"""
    ),
    "habitats": _words(
        """salt marshes; beech woods; peat bogs; gravel pits; alpine meadows; river mouths; reed
        beds; pine forests; old quarries; hedges; wet heaths; coastal dunes; orchards; flooded
        fields"""
    ),
    "food": _words(
        """plums; leeks; chestnuts; trout; buckwheat; pears; white beans; mutton; fennel; red
        cabbage; turnips; mushrooms; lentils; apples; eel; parsnips; goat's cheese; quinces; onions;
        beets"""
    ),
    "spice": _words(
        """caraway; bay leaf; juniper; mustard seed; nutmeg; dill; black pepper; marjoram; clove;
        lemon peel; sage; coriander; horseradish; thyme; vinegar; paprika"""
    ),
    "machine": _words(
        """pump; loom; printing press; crane; turbine; threshing machine; compressor; lathe; boiler;
        paper cutter; conveyor; ventilator; generator; saw; kiln; hoist; mixer; furnace"""
    ),
    "piece": _words(
        """valve; drive belt; bearing; gasket; flywheel; governor; feed roller; crankshaft; filter;
        piston; spindle; pressure plate; ratchet; coupling; nozzle; relay; fuse; oil cup"""
    ),
    "service": _words(
        """billing service; message queue; search index; login page; image store; mail gateway;
        payment processor; export job; mobile app; reporting database; cache layer; load balancer;
        backup system; scheduler; archive server; translation service"""
    ),
    "fault": _words(
        """a full disk; an expired certificate; a slow query; a wrong time zone; a duplicate key; a
        memory leak; a misread configuration file; a lost network route; a lock held too long; a
        retry that never stopped; an outdated library; a truncated upload; a missing index"""
    ),
    "sport": _words(
        """rowing; cycling; chess; swimming; long-distance running; sailing; football; archery;
        orienteering; fencing; handball; ski jumping; table tennis; tug-of-war"""
    ),
    "subject": _words(
        """sleep in shift workers; soil moisture; bird migration; the decay of wooden piles; reading
        in early childhood; the taste of tap water; bridge vibration; crop rotation; traffic at
        roundabouts; noise in open offices; the spread of dialect words; tidal currents; lake ice;
        recovery after knee surgery; the memory of chess players; the price of bread"""
    ),
    "dispute": _words(
        """the right of way along the river; the width of the new road; the price of {goods}; an
        unpaid bill for {material}; the boundary between two fields; the use of the {building}; a
        shipment of {goods} that never arrived; water taken from the common well; the noise of the
        {machine}; the ownership of the {instrument}; a broken contract"""
    ),
    "feeling": _words(
        """relieved; puzzled; proud; tired; amused; cautious; hopeful; disappointed; curious;
        grateful; impatient; embarrassed; delighted; sceptical"""
    ),
    "because": _words(
        """because the {material} had to be brought from {place2}; because the ground was too wet;
        because {last} had fallen ill; because the money from {place2} came late; because nobody had
        ordered enough {material}; since the {season} was unusually dry; after a fire in the {room};
        after a long quarrel over {dispute}; because of a strike at {place2}; since the old
        {instrument} could no longer be trusted; as the road to {place2} was closed for {small}
        weeks; because the {goods} had been stored in the {room}; since the figures from {place2}
        arrived without a signature; after the flood of {month}"""
    ),
    "aside": _words(
        """as the {paper} noted at the time; although {last} remembered it differently; or so it was
        said in {place2}; to the surprise of everyone in {place}; as a letter to {last} shows; much
        as {surname2} had predicted; although no record of it survives; as {last} still liked to
        tell {small} years later; if the register is to be believed; in spite of the weather; for
        reasons that were never explained; which {last} found {strange}; according to a note in the
        {room} of the {building}; a fact that {last} mentions only once; on the advice of {person2};
        as everyone in {place2} agreed; and {last} never tired of saying so; not for the last time;
        as the clerk noted in {colour} ink; which cost {last} a bet; whatever may be said of it now;
        as could be read in the {paper}; at a time when {goods} were dear"""
    ),
    "lead": _words(
        """According to {last},; In the words of the {paper},; For a while,; As a rule,; On paper,;
        In the end,; Even so,; At first,; As so often,; With hindsight,; Strictly speaking,; To
        everyone's relief,; As {last} put it,; In the view of {org2},; Officially,; By all
        accounts,; Judging by the records in {place2},; For some reason,"""
    ),
    "temper": _words(
        """patient; careful; generous; stubborn; quiet; witty; restless; modest; cheerful; severe;
        absent-minded; frugal; proud; eloquent; shy; ironic; polite; clumsy"""
    ),
    "strange": _words(
        """strange; fair; premature; old-fashioned; inevitable; daring; absurd; overdue; correct;
        regrettable; extravagant; perfectly normal"""
    ),
    "strength": _words(
        """strong; absent; moderate; slightly negative; hard to measure; much stronger"""
    ),
    "sound": _words("thin; clear; rising; hoarse; drawn-out; double; piercing; soft"),
    "stone": _words(
        """limestone; brick; slate; granite; sandstone; concrete; basalt; oak; larch; cast iron"""
    ),
    "fish": _words("trout; grayling; young perch; crayfish; minnows; sticklebacks"),
    "pot": _words("copper; clay; cast iron; steel; glass; enamel; soapstone"),
    "drink": _words("cider; dark beer; buttermilk; cold tea; dry white wine; plum brandy; water"),
    "crop": _words("barley; rye; potatoes; sugar beet; flax; hops; oats; clover; maize; cabbage"),
    "firmkind": _words(
        """Canal Company; Steamship Line; Cooperative Dairy; Tramway Company; Paper Works; Brewery;
        Trading House; Forwarding Company; Brothers; Glass Works; Coal Merchants; Timber Yard;
        Railway Company; Packing Company"""
    ),
}
