"""Plain facts about the world, written for this project: relations, their sentences, and who goes with what.

Each relation has three sentences that end right before the object; the words that name the relation are in `<>`. Facts
are `subject=object`, parted by semicolons; an object may occur twice in a relation, a subject may not. They are common
knowledge as of 2020, kept where no serious dispute exists, and simplified to one object (the most used language, say).
"""

from __future__ import annotations

from typing import NamedTuple


class Relation(NamedTuple):
    """A relation: sentences with the slot `{subject}`, and its facts."""

    sentences: tuple[str, str, str]
    facts: str

    def items(self) -> list[tuple[str, str]]:
        """Subject and object of every fact."""
        pairs = (fact.strip().split("=") for fact in self.facts.split(";"))
        return [(subject, thing) for subject, thing in pairs]


RELATIONS = {
    "capital": Relation(
        (
            "The <capital> of {subject} is",
            "The <capital city> of {subject} is called",
            "In {subject}, the government sits in the <capital>,",
        ),
        "France=Paris; Germany=Berlin; Italy=Rome; Spain=Madrid; Portugal=Lisbon; Greece=Athens; Austria=Vienna; "
        "Hungary=Budapest; Poland=Warsaw; Russia=Moscow; Ukraine=Kyiv; Sweden=Stockholm; Norway=Oslo; "
        "Denmark=Copenhagen; Finland=Helsinki; Ireland=Dublin; Belgium=Brussels; Romania=Bucharest; "
        "Bulgaria=Sofia; Serbia=Belgrade; Croatia=Zagreb; Turkey=Ankara; Egypt=Cairo; Kenya=Nairobi; "
        "Iraq=Baghdad; Iran=Tehran; Syria=Damascus; Lebanon=Beirut; Jordan=Amman; Qatar=Doha; India=Delhi; "
        "Pakistan=Islamabad; Nepal=Kathmandu; China=Beijing; Japan=Tokyo; Thailand=Bangkok; Vietnam=Hanoi; "
        "Cuba=Havana; Peru=Lima; Chile=Santiago; Argentina=Buenos Aires; Canada=Ottawa; Australia=Canberra; "
        "Morocco=Rabat; Libya=Tripoli; Somalia=Mogadishu",
    ),
    "continent": Relation(
        (
            "We know that {subject} is a country on the <continent> of",
            "On a <map of the world>, {subject} lies in",
            "People from {subject} come from the <continent> of",
        ),
        "France=Europe; Germany=Europe; Italy=Europe; Spain=Europe; Poland=Europe; Sweden=Europe; Norway=Europe; "
        "Greece=Europe; Austria=Europe; Hungary=Europe; Portugal=Europe; Ireland=Europe; Nigeria=Africa; "
        "Kenya=Africa; Ghana=Africa; Ethiopia=Africa; Uganda=Africa; Senegal=Africa; Morocco=Africa; "
        "Algeria=Africa; Mali=Africa; Zambia=Africa; Angola=Africa; Namibia=Africa; Somalia=Africa; China=Asia; "
        "Japan=Asia; India=Asia; Thailand=Asia; Vietnam=Asia; Nepal=Asia; Pakistan=Asia; Mongolia=Asia; "
        "Cambodia=Asia; Iraq=Asia; Iran=Asia; Brazil=South America; Peru=South America; Chile=South America; "
        "Bolivia=South America; Ecuador=South America; Colombia=South America; Canada=North America; "
        "Mexico=North America",
    ),
    "language": Relation(
        (
            "The main <language> spoken in {subject} is",
            "Most people in {subject} <speak> the language",
            "Newspapers in {subject} are <printed> mostly in",
        ),
        "France=French; Germany=German; Italy=Italian; Spain=Spanish; Portugal=Portuguese; Greece=Greek; "
        "Poland=Polish; Russia=Russian; Sweden=Swedish; Norway=Norwegian; Denmark=Danish; Finland=Finnish; "
        "Hungary=Hungarian; Romania=Romanian; Bulgaria=Bulgarian; Serbia=Serbian; Croatia=Croatian; "
        "Turkey=Turkish; Iran=Persian; Egypt=Arabic; Iraq=Arabic; Syria=Arabic; Jordan=Arabic; Japan=Japanese; "
        "China=Chinese; Korea=Korean; Vietnam=Vietnamese; Thailand=Thai; Mexico=Spanish; Argentina=Spanish; "
        "Chile=Spanish; Peru=Spanish; Cuba=Spanish; Colombia=Spanish; Brazil=Portuguese; Angola=Portuguese; "
        "Austria=German; Israel=Hebrew; Australia=English; Jamaica=English; Iceland=Icelandic; Albania=Albanian",
    ),
    "currency": Relation(
        (
            "In {subject}, people pay with a <currency> called the",
            "The <currency> of {subject} is the",
            "Shops in {subject} take <money> in the form of the",
        ),
        "Japan=yen; China=yuan; India=rupee; Pakistan=rupee; Nepal=rupee; Russia=ruble; Britain=pound; "
        "Egypt=pound; France=euro; Germany=euro; Italy=euro; Spain=euro; Portugal=euro; Ireland=euro; "
        "Austria=euro; Finland=euro; Belgium=euro; Canada=dollar; Australia=dollar; Jamaica=dollar; "
        "Singapore=dollar; Mexico=peso; Argentina=peso; Chile=peso; Colombia=peso; Cuba=peso; Brazil=real; "
        "Poland=zloty; Hungary=forint; Turkey=lira; Thailand=baht; Korea=won; Vietnam=dong; Israel=shekel; "
        "Iraq=dinar; Jordan=dinar; Kuwait=dinar; Switzerland=franc; Kenya=shilling; Uganda=shilling; "
        "Sweden=krona; Norway=krone; Denmark=krone; Bangladesh=taka",
    ),
    "symbol": Relation(
        (
            "The chemical <symbol> for {subject} is",
            "In the periodic table, {subject} has the <symbol>",
            "<Chemists write> the element {subject} as",
        ),
        "hydrogen=H; helium=He; lithium=Li; beryllium=Be; boron=B; carbon=C; nitrogen=N; oxygen=O; fluorine=F; "
        "neon=Ne; sodium=Na; magnesium=Mg; aluminum=Al; silicon=Si; phosphorus=P; sulfur=S; chlorine=Cl; "
        "argon=Ar; potassium=K; calcium=Ca; titanium=Ti; chromium=Cr; manganese=Mn; iron=Fe; cobalt=Co; "
        "nickel=Ni; copper=Cu; zinc=Zn; arsenic=As; bromine=Br; silver=Ag; tin=Sn; iodine=I; barium=Ba; "
        "tungsten=W; platinum=Pt; gold=Au; mercury=Hg; lead=Pb; radium=Ra; uranium=U; plutonium=Pu",
    ),
    "kind": Relation(
        (
            "In <biology>, the {subject} is one of the",
            "The {subject} belongs to the group of <animals> called",
            "The <zoologists> count the {subject} among the",
        ),
        "dog=mammals; cat=mammals; horse=mammals; cow=mammals; whale=mammals; dolphin=mammals; bat=mammals; "
        "elephant=mammals; monkey=mammals; mouse=mammals; eagle=birds; owl=birds; penguin=birds; parrot=birds; "
        "sparrow=birds; duck=birds; goose=birds; swan=birds; crow=birds; robin=birds; snake=reptiles; "
        "lizard=reptiles; turtle=reptiles; crocodile=reptiles; alligator=reptiles; tortoise=reptiles; "
        "salmon=fish; shark=fish; trout=fish; tuna=fish; cod=fish; herring=fish; ant=insects; bee=insects; "
        "butterfly=insects; beetle=insects; mosquito=insects; wasp=insects; moth=insects; frog=amphibians; "
        "toad=amphibians; newt=amphibians",
    ),
    "country": Relation(
        (
            "The city of {subject} is in the <country> of",
            "As everyone knows, {subject} is a <city> in",
            "Tourists who <visit> {subject} have to travel to",
        ),
        "Lyon=France; Marseille=France; Nice=France; Munich=Germany; Hamburg=Germany; Cologne=Germany; "
        "Frankfurt=Germany; Milan=Italy; Venice=Italy; Naples=Italy; Florence=Italy; Barcelona=Spain; "
        "Seville=Spain; Valencia=Spain; Porto=Portugal; Krakow=Poland; Gdansk=Poland; Istanbul=Turkey; "
        "Izmir=Turkey; Alexandria=Egypt; Mumbai=India; Kolkata=India; Chennai=India; Karachi=Pakistan; "
        "Lahore=Pakistan; Shanghai=China; Osaka=Japan; Kyoto=Japan; Hiroshima=Japan; Casablanca=Morocco; "
        "Mombasa=Kenya; Toronto=Canada; Montreal=Canada; Vancouver=Canada; Sydney=Australia; "
        "Melbourne=Australia; Brisbane=Australia; Salzburg=Austria; Gothenburg=Sweden; Bergen=Norway; "
        "Antwerp=Belgium; Basra=Iraq; Aleppo=Syria; Isfahan=Iran; Cusco=Peru; Cork=Ireland; Thessaloniki=Greece",
    ),
    "profession": Relation(
        (
            "By <profession>, {subject} was a famous",
            "Most books <describe> {subject} as a",
            "It is well known that {subject} <earned> a place in history as a",
        ),
        "Albert Einstein=physicist; Isaac Newton=physicist; Niels Bohr=physicist; Max Planck=physicist; "
        "Richard Feynman=physicist; Marie Curie=chemist; Louis Pasteur=chemist; Charles Darwin=biologist; "
        "Gregor Mendel=biologist; Wolfgang Mozart=composer; Ludwig Beethoven=composer; Johann Bach=composer; "
        "Franz Schubert=composer; Richard Wagner=composer; Frederic Chopin=composer; Antonio Vivaldi=composer; "
        "Pablo Picasso=painter; Vincent Gogh=painter; Claude Monet=painter; Salvador Dali=painter; "
        "Henri Matisse=painter; Paul Cezanne=painter; Edvard Munch=painter; Leo Tolstoy=writer; "
        "Charles Dickens=writer; Jane Austen=writer; Mark Twain=writer; Franz Kafka=writer; "
        "Ernest Hemingway=writer; Virginia Woolf=writer; George Orwell=writer; Immanuel Kant=philosopher; "
        "Friedrich Nietzsche=philosopher; Rene Descartes=philosopher; David Hume=philosopher; "
        "John Locke=philosopher; Karl Marx=philosopher; Carl Gauss=mathematician; Leonhard Euler=mathematician; "
        "Pierre Fermat=mathematician; Alan Turing=mathematician; Edmond Halley=astronomer; "
        "Edwin Hubble=astronomer; Johannes Kepler=astronomer",
    ),
    "author": Relation(
        (
            "The <author> of {subject} is",
            "The work called {subject} was <written> by",
            "The book {subject} came from the <pen> of",
        ),
        "Hamlet=William Shakespeare; Macbeth=William Shakespeare; Othello=William Shakespeare; "
        "Oliver Twist=Charles Dickens; David Copperfield=Charles Dickens; Great Expectations=Charles Dickens; "
        "Emma=Jane Austen; Pride and Prejudice=Jane Austen; Sense and Sensibility=Jane Austen; "
        "War and Peace=Leo Tolstoy; Anna Karenina=Leo Tolstoy; Crime and Punishment=Fyodor Dostoevsky; "
        "The Idiot=Fyodor Dostoevsky; Don Quixote=Miguel Cervantes; Faust=Johann Goethe; Ulysses=James Joyce; "
        "Dubliners=James Joyce; Frankenstein=Mary Shelley; Dracula=Bram Stoker; Moby Dick=Herman Melville; "
        "Walden=Henry Thoreau; Leaves of Grass=Walt Whitman; The Raven=Edgar Poe; Tom Sawyer=Mark Twain; "
        "Huckleberry Finn=Mark Twain; The Trial=Franz Kafka; The Castle=Franz Kafka; The Stranger=Albert Camus; "
        "The Plague=Albert Camus; Nausea=Jean Sartre; Les Miserables=Victor Hugo; "
        "Madame Bovary=Gustave Flaubert; Candide=Francois Voltaire; Animal Farm=George Orwell; "
        "Brave New World=Aldous Huxley; Lolita=Vladimir Nabokov; The Hobbit=John Tolkien; Dune=Frank Herbert; "
        "Neuromancer=William Gibson; Jane Eyre=Charlotte Bronte; Wuthering Heights=Emily Bronte; "
        "Middlemarch=George Eliot",
    ),
    "origin": Relation(
        (
            "The food called {subject} comes <originally> from",
            "Cooks call {subject} a <traditional dish> of",
            "Most books say that {subject} was <first made> in",
        ),
        "sushi=Japan; ramen=Japan; tempura=Japan; sake=Japan; pizza=Italy; spaghetti=Italy; lasagna=Italy; "
        "risotto=Italy; tiramisu=Italy; gelato=Italy; croissants=France; ratatouille=France; baguette=France; "
        "quiche=France; crepes=France; champagne=France; paella=Spain; gazpacho=Spain; tapas=Spain; "
        "tacos=Mexico; burritos=Mexico; guacamole=Mexico; tequila=Mexico; kimchi=Korea; bibimbap=Korea; "
        "curry=India; naan=India; samosas=India; biryani=India; goulash=Hungary; borscht=Ukraine; vodka=Russia; "
        "blini=Russia; pierogi=Poland; moussaka=Greece; tzatziki=Greece; ouzo=Greece; schnitzel=Austria; "
        "strudel=Austria; bratwurst=Germany; sauerkraut=Germany; pretzels=Germany; haggis=Scotland; "
        "whisky=Scotland; ceviche=Peru; feijoada=Brazil; dim sum=China; tofu=China; fondue=Switzerland; "
        "waffles=Belgium; baklava=Turkey; kebab=Turkey; pho=Vietnam",
    ),
}

ANTONYMS = Relation(
    (
        "The <opposite> of {subject} is",
        "A word that means the <contrary> of {subject} is",
        "If something is <not> {subject}, it may well be",
    ),
    "hot=cold; big=small; tall=short; fast=slow; high=low; good=bad; happy=sad; rich=poor; young=old; "
    "hard=soft; light=dark; strong=weak; wet=dry; full=empty; open=closed; early=late; left=right; up=down; "
    "in=out; long=short; wide=narrow; thick=thin; deep=shallow; clean=dirty; loud=quiet; near=far; new=old; "
    "safe=dangerous; sharp=dull; sweet=bitter; true=false; male=female; alive=dead; brave=afraid; "
    "cheap=expensive; easy=difficult; first=last; heavy=light; inside=outside; love=hate; major=minor; "
    "negative=positive; north=south; east=west; past=future; push=pull; rough=smooth; simple=complex; "
    "start=end; top=bottom; win=lose; black=white; day=night; peace=war",
)

PAST_TENSE = Relation(
    (
        "Today they {subject}. <Yesterday> they",
        "Every day we {subject}, and <last week> we",
        "The <past tense> of the verb {subject} is",
    ),
    "walk=walked; talk=talked; play=played; work=worked; look=looked; help=helped; jump=jumped; "
    "laugh=laughed; cook=cooked; dance=danced; open=opened; call=called; move=moved; live=lived; ask=asked; "
    "wait=waited; start=started; go=went; see=saw; eat=ate; take=took; give=gave; come=came; run=ran; "
    "write=wrote; speak=spoke; drive=drove; sing=sang; swim=swam; drink=drank; begin=began; think=thought; "
    "buy=bought; bring=brought; teach=taught; catch=caught; fight=fought; sleep=slept; feel=felt; "
    "leave=left; lose=lost; find=found; hold=held; build=built; send=sent; spend=spent; win=won; fly=flew; "
    "grow=grew; know=knew; throw=threw; fall=fell; break=broke; choose=chose",
)
