"""Plain facts about the world, written for this project: relations, their sentences, and who goes with what.

Each relation has three sentences that end right before the object; the words that name the relation are in `<>`. Facts
are `subject=object`, parted by semicolons; an object may occur twice in a relation, a subject may not. They are common
knowledge as of 2020, kept where no serious dispute exists, and simplified to one object (the most used language, say).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Relation(NamedTuple):
    """A relation: sentences with the slot `{subject}`, and its facts; of two steps also what each subject goes over."""

    sentences: tuple[str, str, str]
    facts: str
    bridges: Mapping[str, str] | None = None

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
        "Antwerp=Belgium; Basra=Iraq; Aleppo=Syria; Isfahan=Iran; Cusco=Peru; Cork=Ireland; Thessaloniki=Greece; "
        "Lille=France; Bordeaux=France; Toulouse=France; Strasbourg=France; Stuttgart=Germany; Dresden=Germany; "
        "Leipzig=Germany; Bremen=Germany; Nuremberg=Germany; Hanover=Germany; Dortmund=Germany; Turin=Italy; "
        "Bologna=Italy; Genoa=Italy; Palermo=Italy; Verona=Italy; Bilbao=Spain; Granada=Spain; Malaga=Spain; "
        "Zaragoza=Spain; Braga=Portugal; Coimbra=Portugal; Poznan=Poland; Wroclaw=Poland; Antalya=Turkey; "
        "Bursa=Turkey; Adana=Turkey; Giza=Egypt; Luxor=Egypt; Aswan=Egypt; Bangalore=India; Pune=India; "
        "Jaipur=India; Faisalabad=Pakistan; Peshawar=Pakistan; Multan=Pakistan; Guangzhou=China; Shenzhen=China; "
        "Wuhan=China; Chengdu=China; Nanjing=China; Nagoya=Japan; Yokohama=Japan; Kobe=Japan; Fukuoka=Japan; "
        "Sapporo=Japan; Marrakesh=Morocco; Fez=Morocco; Tangier=Morocco; Kisumu=Kenya; Nakuru=Kenya; "
        "Calgary=Canada; Edmonton=Canada; Winnipeg=Canada; Perth=Australia; Adelaide=Australia; "
        "Hobart=Australia; Graz=Austria; Linz=Austria; Innsbruck=Austria; Uppsala=Sweden; Trondheim=Norway; "
        "Stavanger=Norway; Ghent=Belgium; Bruges=Belgium; Mosul=Iraq; Kirkuk=Iraq; Homs=Syria; Tabriz=Iran; "
        "Shiraz=Iran; Arequipa=Peru; Galway=Ireland; Limerick=Ireland; Patras=Greece; Aarhus=Denmark; "
        "Odense=Denmark; Tampere=Finland; Turku=Finland; Debrecen=Hungary; Kharkiv=Ukraine; Odessa=Ukraine; "
        "Lviv=Ukraine; Kazan=Russia; Omsk=Russia; Vladivostok=Russia; Plovdiv=Bulgaria; Varna=Bulgaria; "
        "Monterrey=Mexico; Tijuana=Mexico; Medellin=Colombia; Cali=Colombia; Rosario=Argentina; "
        "Valparaiso=Chile; Recife=Brazil; Curitiba=Brazil; Hue=Vietnam; Da Nang=Vietnam",
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
    "start=end; top=bottom; win=lose; black=white; day=night; peace=war; above=below; absent=present; "
    "accept=reject; active=passive; add=subtract; advance=retreat; agree=disagree; ancient=modern; "
    "appear=disappear; arrive=depart; asleep=awake; attack=defend; attract=repel; backward=forward; "
    "beautiful=ugly; before=after; behind=ahead; best=worst; better=worse; birth=death; borrow=lend; "
    "bold=timid; boring=interesting; bright=dim; build=destroy; buy=sell; careful=careless; cause=effect; "
    "ceiling=floor; certain=uncertain; child=adult; clever=stupid; common=rare; complete=incomplete; "
    "connect=disconnect; curved=straight; dawn=dusk; decrease=increase; descend=ascend; domestic=foreign; "
    "enemy=friend; enter=exit; equal=unequal; even=odd; export=import; external=internal; fact=fiction; "
    "fail=succeed; fake=real; few=many; float=sink; flexible=rigid; foolish=wise; forget=remember; "
    "forbid=allow; often=rarely; fresh=stale; front=back; gain=loss; general=specific; generous=selfish; "
    "gentle=harsh; giant=tiny; guilty=innocent; healthy=sick; heaven=hell; hero=villain; hide=show; "
    "hire=fire; honest=dishonest; horizontal=vertical; humble=proud; inhale=exhale; include=exclude; "
    "inferior=superior; junior=senior; kind=cruel; laugh=cry; leader=follower; legal=illegal; less=more; "
    "liquid=solid; literal=figurative; lock=unlock; logical=illogical; lower=raise; loyal=disloyal; "
    "masculine=feminine; mature=immature; maximum=minimum; mild=severe; mix=separate; moral=immoral; "
    "multiply=divide; natural=artificial; neat=messy; never=always; noisy=silent; normal=abnormal; "
    "nothing=everything; obey=disobey; on=off; optimistic=pessimistic; over=under; partial=total; "
    "patient=impatient; permanent=temporary; plus=minus; polite=rude; possible=impossible; praise=criticize; "
    "private=public; pure=impure; raw=cooked; regular=irregular; relaxed=tense; reward=punishment; "
    "rise=fall; rural=urban; scatter=gather; shout=whisper; singular=plural; sit=stand; sober=drunk; "
    "spend=save; stop=go; student=teacher; summer=winter; sunny=cloudy; sunrise=sunset; tame=wild; "
    "tight=loose; together=apart; victory=defeat; visible=invisible; voluntary=mandatory; warm=cool; "
    "wealth=poverty; whole=part; with=without; yes=no; throw=catch; useful=useless; upstairs=downstairs; "
    "vacant=occupied; valid=invalid; lucky=unlucky; fair=unfair; same=different; join=leave; hope=despair; "
    "evening=morning; employer=employee; outer=inner; nervous=calm; mountain=valley; melt=freeze; "
    "majority=minority; land=sea; host=guest; harmful=harmless; freedom=slavery; expand=shrink; bless=curse; "
    "amateur=professional; abundant=scarce",
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
    "grow=grew; know=knew; throw=threw; fall=fell; break=broke; choose=chose; add=added; agree=agreed; "
    "allow=allowed; answer=answered; appear=appeared; arrive=arrived; attack=attacked; bake=baked; "
    "believe=believed; boil=boiled; borrow=borrowed; brush=brushed; burn=burned; carry=carried; "
    "change=changed; chase=chased; clean=cleaned; climb=climbed; close=closed; collect=collected; "
    "complain=complained; count=counted; cover=covered; cross=crossed; cry=cried; decide=decided; "
    "deliver=delivered; deny=denied; discuss=discussed; draw=drew; dream=dreamed; drop=dropped; "
    "enjoy=enjoyed; enter=entered; escape=escaped; explain=explained; explore=explored; fail=failed; "
    "fill=filled; finish=finished; fix=fixed; follow=followed; forget=forgot; forgive=forgave; freeze=froze; "
    "gather=gathered; get=got; hate=hated; hear=heard; hide=hid; hope=hoped; hunt=hunted; hurry=hurried; "
    "improve=improved; invite=invited; join=joined; joke=joked; keep=kept; kick=kicked; kiss=kissed; "
    "knock=knocked; land=landed; lead=led; learn=learned; lend=lent; lift=lifted; like=liked; "
    "listen=listened; lock=locked; love=loved; make=made; marry=married; meet=met; mention=mentioned; "
    "miss=missed; need=needed; notice=noticed; offer=offered; order=ordered; paint=painted; pass=passed; "
    "pay=paid; plan=planned; plant=planted; practice=practiced; pray=prayed; prepare=prepared; "
    "promise=promised; protect=protected; pull=pulled; push=pushed; reach=reached; receive=received; "
    "refuse=refused; remember=remembered; repair=repaired; reply=replied; report=reported; rest=rested; "
    "return=returned; ride=rode; ring=rang; rise=rose; sail=sailed; save=saved; say=said; search=searched; "
    "sell=sold; shake=shook; share=shared; shoot=shot; shop=shopped; shout=shouted; sit=sat; smile=smiled; "
    "stand=stood; stay=stayed; steal=stole; stop=stopped; study=studied; suffer=suffered; swear=swore; "
    "taste=tasted; tell=told; thank=thanked; touch=touched; train=trained; trust=trusted; try=tried; "
    "turn=turned; understand=understood; use=used; visit=visited; vote=voted; wake=woke; want=wanted; "
    "warn=warned; wash=washed; waste=wasted; watch=watched; wear=wore; weep=wept; whisper=whispered; "
    "wish=wished; wonder=wondered; worry=worried; yell=yelled",
)
